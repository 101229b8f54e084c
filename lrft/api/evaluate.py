"""`lrft eval`: a run's adapter, and the bare base beside it, on tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lrft.api.open_run import open_run, trusts_remote_code
from lrft.build.job import subject
from lrft.core.adapted import adapted, adapters_off
from lrft.evaluation.run import evaluate_tasks
from lrft.evaluation.subject import Progress
from lrft.evaluation.tasks._task import TaskResult
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.trained import base_parameters, put_back
from lrft.recipe.schema import Recipe
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig, parse_choice
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder, find


def evaluate(
    run: RunFolder | Path | str | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    baseline: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, TaskResult]]:
    """Score a run's adapter, and the bare base beside it if asked; returns label -> task -> result.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        tasks: by name; by default those of the recipe.
        limit: score only the first so many rows.
        baseline: score the bare base model as well.
        progress: hears (what, done, total).

    Processes that a launcher started share the batches; each returns the whole result, and the first writes it.

    The base is as it is stored, quantized if the recipe says so, and without anything that was trained: base weights
    that trained have their pretrained values again.

    Raises:
        UsageError: the recipe names no task and no held-out rows; or there is no base to score.
    """
    folder = find(run)
    recipe, text, adaptation = open_run(folder)
    own = any("own_weights" in site.adapter.provides for _, site in adapted(adaptation.model.hf))
    if baseline and own and recipe.adapter is not None:
        raise UsageError(
            f"--baseline: {recipe.adapter.method} is the model's weights itself; there is no base"
        )
    chosen = _tasks(recipe, tasks)
    team = adaptation.team
    target = subject(recipe, text, adaptation.model, progress if team.rank == 0 else None, team)
    written = folder.path if team.rank == 0 else None
    limit = limit or recipe.eval.limit
    results = {"adapter": evaluate_tasks(target, chosen, limit, written, "adapter")}
    if baseline:
        with adapters_off(adaptation.model), _pretrained_weights(recipe, folder, adaptation.model):
            results["baseline"] = evaluate_tasks(target, chosen, limit, written, "baseline")
    return results


def _pretrained_weights(recipe: Recipe, folder: RunFolder, model: CausalLM) -> AbstractContextManager[None]:
    if not any(base_parameters(model)):
        return nullcontext()
    trusted = trusts_remote_code(folder)
    return put_back(model, load_model(recipe.model, trust_remote_code=trusted, seed=recipe.train.seed))


def _tasks(recipe: Recipe, names: Sequence[str]) -> list[MethodConfig]:
    known = {task.method: task for task in recipe.eval.tasks}
    if names:
        unknown = [name for name in names if name not in TASKS.names()]
        if unknown:
            raise UsageError(f"--task {unknown[0]}: no such task{did_you_mean(unknown[0], TASKS.names())}")
        return [known.get(name) or parse_choice(TASKS, name) for name in names]
    if not recipe.eval.tasks and not recipe.data.holds_out:
        raise UsageError("eval.tasks: the recipe names no task and no data.eval; add one, or --task NAME")
    return list(recipe.eval.tasks) or [parse_choice(TASKS, "loss")]
