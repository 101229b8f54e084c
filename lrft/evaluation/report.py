"""What an evaluation leaves in the run folder, and the table it prints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lrft.core.plain import plain as plain
from lrft.evaluation.tasks._task import TaskResult
from lrft.registry.json import to_section

FORMAT = 1
SAMPLES = 50  # a task


def write_report(
    folder: Path, name: str, results: Mapping[str, TaskResult], subject: Mapping[str, object]
) -> Path:
    """Write `eval/NAME.json` and, when a task shows samples, `eval/NAME-samples.jsonl`, in the run folder.

    Each is written beside and renamed, so a reader sees the old file or the new. Numbers that do not exist,
    such as the standard error of one row, are null.

    Args:
        subject: facts about what was scored, kept as they are.

    Returns:
        The path of the JSON file.
    """
    target = folder / "eval"
    target.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"task": task, **to_section(plain(sample))}, ensure_ascii=False)
        for task, result in results.items()
        for sample in result.samples[:SAMPLES]
    ]
    if lines:
        _replace(target / f"{name}-samples.jsonl", "".join(f"{line}\n" for line in lines))
    tasks = {
        task: {
            "version": result.version,
            "n": result.n,
            "metrics": result.metrics,
            "settings": result.settings,
        }
        for task, result in results.items()
    }
    record = {"format": FORMAT, "name": name, "subject": dict(subject), "tasks": tasks}
    path = target / f"{name}.json"
    _replace(path, json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def table(results: Mapping[str, Mapping[str, TaskResult]]) -> Table:
    """Metrics down, one column per label (adapter, baseline), standard errors behind their metric."""
    shown = Table("task", "metric", *(label for label in results))
    for column in shown.columns[2:]:
        column.justify = "right"
    first = next(iter(results.values()), {})
    for task, result in first.items():
        heading = f"{task} (n={result.n})"
        for metric in result.metrics:
            if not metric.endswith("_stderr"):
                shown.add_row(
                    heading, metric, *(_cell(tasks.get(task), metric) for tasks in results.values())
                )
                heading = ""
    return shown


def plain_table(scores: Any) -> Table:
    """The same of metrics alone: label -> task -> metric -> value."""
    shown = Table("task", "metric", *scores)
    tasks = dict.fromkeys(task for found in scores.values() for task in found)
    for task in tasks:
        metrics = dict.fromkeys(name for found in scores.values() for name in found.get(task, {}))
        for metric in metrics:
            values = [found.get(task, {}).get(metric) for found in scores.values()]
            shown.add_row(task, metric, *("-" if value is None else f"{value:.6g}" for value in values))
    return shown


def _cell(result: TaskResult | None, metric: str) -> str:
    if result is None or metric not in result.metrics:
        return "-"
    value = result.metrics[metric]
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    error = result.metrics.get(f"{metric}_stderr", math.nan)
    return f"{text} ± {error:.4f}" if math.isfinite(error) else text


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
