"""`lrft eval`: a run's adapter, and the bare base beside it, on tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.api.open_run import bare_base, check_base, open_run
from lrft.build.job import subject
from lrft.evaluation.harness import harness_results
from lrft.evaluation.report import write_report
from lrft.evaluation.run import describe, evaluate_tasks
from lrft.evaluation.subject import Progress
from lrft.evaluation.tasks._task import TaskResult
from lrft.recipe.head_clashes import why_not_scored
from lrft.recipe.schema import Recipe
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig, parse_choice
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.training.chosen import find_checkpoint
from lrft.training.folder import RunFolder


def evaluate(
    run: RunFolder | Path | str | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    baseline: bool = False,
    progress: Progress | None = None,
    checkpoint: str | None = None,
    harness: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> dict[str, dict[str, TaskResult]]:
    """Score a run's adapter, and the bare base beside it if asked; returns label -> task -> result.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        tasks: by name; by default those of the recipe.
        limit: score only the first so many rows.
        baseline: score the bare base model as well.
        progress: hears (what, done, total).
        checkpoint: `best`, `last` or `step-N`; by default the newest. One that was named has files of its own.
        harness: tasks of lm-eval to run instead, by name or .yaml file; their scores go to `eval/harness-LABEL.json`.
        trust_remote_code: let code run that comes with the base model.

    Processes that a launcher started share the batches; each returns the whole result, and the first writes it.

    The base is as it is stored, quantized if the recipe says so, and without anything that was trained: base weights
    that trained have their pretrained values again.

    Raises:
        UsageError: the recipe names no task and no held-out rows; there is no such checkpoint, or no base to score.
    """
    folder = find_checkpoint(run, checkpoint)
    folder.trusted = trust_remote_code
    recipe, text, adaptation = open_run(folder, scores=True)
    if baseline:
        check_base(recipe, adaptation.model, "--baseline")
    if harness and tasks:
        raise UsageError("--harness, --task: give one of them at a time")
    if harness and recipe.model.head is not None:
        raise UsageError(
            "--harness: its tasks ask for tokens, and this model scores whole texts (model.head)"
        )
    chosen = [] if harness else _tasks(recipe, tasks)
    team = adaptation.team
    target = subject(recipe, text, adaptation.model, progress if team.rank == 0 else None, team)
    written = folder.path if team.rank == 0 else None
    limit = limit or recipe.eval.limit
    name = "adapter" if folder.chosen is None else f"adapter-{folder.chosen.name}"

    def score(label: str) -> dict[str, TaskResult]:
        if not harness:
            return evaluate_tasks(target, chosen, limit, written, label)
        found = harness_results(target, harness, limit)
        if written is not None:
            write_report(written, f"harness-{label}", found, describe(target))
        return found

    results = {"adapter": score(name)}
    if baseline:
        with bare_base(recipe, folder, adaptation.model):
            results["baseline"] = score("baseline")
    return results


def _tasks(recipe: Recipe, names: Sequence[str]) -> list[MethodConfig]:
    known = {task.method: task for task in recipe.eval.tasks}
    if names:
        unknown = [name for name in names if name not in TASKS.names()]
        if unknown:
            raise UsageError(f"--task {unknown[0]}: no such task{did_you_mean(unknown[0], TASKS.names())}")
        for name in names:
            if reason := why_not_scored(name, recipe.model.head is not None):
                raise UsageError(f"--task {name}: {reason}")
        return [known.get(name) or parse_choice(TASKS, name) for name in names]
    if not recipe.eval.tasks and not recipe.data.holds_out:
        raise UsageError("eval.tasks: the recipe names no task and no data.eval; add one, or --task NAME")
    return list(recipe.eval.tasks) or [parse_choice(TASKS, "loss")]
