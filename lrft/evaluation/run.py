"""Run the tasks of a recipe on one subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lrft.core import stop
from lrft.core.adapted import adapted
from lrft.evaluation.report import write_report
from lrft.evaluation.subject import EvaluationStopped, Subject
from lrft.evaluation.tasks._task import TaskResult
from lrft.files.write import remove_file
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig
from lrft.registry.json import Json

UNFINISHED = "-unfinished"  # of a report, some tasks of which were not scored


def evaluate_tasks(
    subject: Subject,
    tasks: Sequence[MethodConfig],
    limit: int | None,
    folder: Path | None,
    label: str,
    about: Mapping[str, Json] | None = None,
) -> dict[str, TaskResult]:
    """Score the subject on every task and write `eval/LABEL.json` in `folder`.

    The baseline is the same call inside `adapters_off(subject.model)`.

    Args:
        tasks: parsed sections of `eval.tasks`; a task listed twice is kept as `name` and `name-2`.
        limit: score only the first so many rows of each task.
        folder: the run folder; None writes nothing.
        label: `adapter` or `baseline`, the name of the files.
        about: what the report says of the subject beside what `describe` finds (`scored_as`).

    Raises:
        DataError, RecipeError: a task has no rows, or one that cannot be scored.
        EvaluationStopped: a signal came; it holds what was finished, as does `eval/LABEL-unfinished.json`.
    """
    results: dict[str, TaskResult] = {}
    try:
        for config in tasks:
            task = TASKS.get(config.method)(config)
            results[_free_name(config.method, results)] = task.run(subject, limit)
    except EvaluationStopped as stopped:
        stopped.finished, stopped.left = results, [config.method for config in tasks[len(results) :]]
        if folder is not None and results:
            with stop.held():
                unfinished = {**describe(subject), **(about or {})}
                stopped.file = write_report(folder, f"{label}{UNFINISHED}", results, unfinished)
        raise
    if folder is not None:
        with stop.held():
            write_report(folder, label, results, {**describe(subject), **(about or {})})
            for file in (f"{label}{UNFINISHED}.json", f"{label}{UNFINISHED}-samples.jsonl"):
                remove_file(folder / "eval" / file)
    return results


def metrics_of(results: Mapping[str, TaskResult]) -> dict[str, dict[str, float]]:
    """Task -> its metrics alone."""
    return {task: dict(result.metrics) for task, result in results.items()}


def scored_as(checkpoint: str | None, limit: int | None, sums: Mapping[str, str]) -> dict[str, Json]:
    """For a report: which checkpoint, on how many rows of a task at most, and with which base, tokenizer and template.

    Args:
        checkpoint: None for the base alone.
        sums: of what it was trained on, by part.
    """
    used = {part: sums[part] for part in ("base", "config", "tokenizer", "template") if part in sums}
    return {"checkpoint": checkpoint, "limit": limit, "scored_with": used}


def describe(subject: Subject) -> dict[str, object]:
    """What was scored: architecture, precision, and how many adapters were at work."""
    sites = [site for _, site in adapted(subject.model)]
    return {
        "model": type(subject.hf).__name__,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": str(subject.model.device),
        "attention": str(subject.hf.config._attn_implementation),
        "adapters": len(sites),
        "adapters_enabled": sum(site.enabled for site in sites),
    }


def _free_name(name: str, taken: dict[str, TaskResult]) -> str:
    number = sum(key.partition("-")[0] == name for key in taken)
    return name if number == 0 else f"{name}-{number + 1}"
