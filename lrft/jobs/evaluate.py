"""`lrft eval`: a run's adapter, and the bare base beside it, on tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lrft.assemble.job import subject
from lrft.core.adapted import adapted, adapters_off
from lrft.core.axes import TASKS
from lrft.core.config import MethodConfig, parse_choice
from lrft.core.errors import UsageError
from lrft.core.names import did_you_mean
from lrft.evaluate.run import evaluate
from lrft.jobs.open_run import open_run, trusts_remote_code
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.trained import base_parameters, put_back
from lrft.recipe.schema import Recipe
from lrft.train.folder import RunFolder


def evaluate_run(
    folder: RunFolder,
    tasks: list[str],
    limit: int | None,
    baseline: bool,
    progress: Callable[..., None] | None,
) -> dict[str, dict[str, Any]]:
    """Score a run's adapter, and the bare base beside it if asked; returns label -> task -> result.

    The base is as it is stored, quantized if the recipe says so, and without anything that was trained: base weights
    that trained have their pretrained values again.

    Raises:
        UsageError: the recipe names no task and no held-out rows; or there is no base to score.
    """
    recipe, text, adaptation = open_run(folder)
    if baseline and any("own_weights" in site.adapter.provides for _, site in adapted(adaptation.model.hf)):
        raise UsageError(
            f"--baseline: {recipe.adapter.method} is the model's weights itself; there is no base"
        )
    chosen = _tasks(recipe, tasks)
    target = subject(recipe, text, adaptation.model, progress=progress)
    limit = limit or recipe.eval.limit
    results = {"adapter": evaluate(target, chosen, limit, folder.path, "adapter")}
    if baseline:
        with adapters_off(adaptation.model), _pretrained_weights(recipe, folder, adaptation.model):
            results["baseline"] = evaluate(target, chosen, limit, folder.path, "baseline")
    return results


def _pretrained_weights(recipe: Recipe, folder: RunFolder, model: CausalLM) -> AbstractContextManager[None]:
    if not any(base_parameters(model)):
        return nullcontext()
    trusted = trusts_remote_code(folder)
    return put_back(model, load_model(recipe.model, trust_remote_code=trusted, seed=recipe.train.seed))


def _tasks(recipe: Recipe, names: list[str]) -> list[MethodConfig]:
    known = {task.method: task for task in recipe.eval.tasks}
    if names:
        unknown = [name for name in names if name not in TASKS.names()]
        if unknown:
            raise UsageError(f"--task {unknown[0]}: no such task{did_you_mean(unknown[0], TASKS.names())}")
        return [known.get(name) or parse_choice(TASKS, name) for name in names]
    if not recipe.eval.tasks and recipe.data.eval is None:
        raise UsageError("eval.tasks: the recipe names no task and no data.eval; add one, or --task NAME")
    return list(recipe.eval.tasks) or [parse_choice(TASKS, "loss")]
