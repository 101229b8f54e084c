"""What an evaluation leaves in the run folder, and the table it prints."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lrft.core.plain import plain as plain
from lrft.evaluation.replaced import tell_replaced
from lrft.evaluation.tasks._task import TaskResult
from lrft.files.failure import WriteError
from lrft.files.json import with_sum
from lrft.files.write import write_file
from lrft.registry.json import to_section

FORMAT = 1
SAMPLES = 50  # a task
SAMPLES_SUM = "samples_sha256"


class NotReported(WriteError):
    """Scores were taken, and the report could not be written.

    Attributes:
        results: label -> task -> result, as far as there are any.
    """

    def __init__(self, error: WriteError, results: Mapping[str, Mapping[str, TaskResult]]) -> None:
        super().__init__(str(error), error.number)
        self.results = results
        self.record = {
            label: {task: plain(one.metrics) for task, one in tasks.items()}
            for label, tasks in results.items()
        }


def write_report(
    folder: Path, name: str, results: Mapping[str, TaskResult], subject: Mapping[str, object]
) -> Path:
    """Write `eval/NAME.json` and, when a task shows samples, `eval/NAME-samples.jsonl`, in the run folder.

    Each is written whole, so a reader sees the old file or the new. Numbers that do not exist, such as the standard
    error of one row, are null.

    Args:
        subject: facts about what was scored, kept as they are; it is told where a report is replaced that had others.

    Returns:
        The path of the JSON file.

    Raises:
        NotReported: the disk is full or not writable; it holds the results.
    """
    try:
        return _write(folder / "eval", name, results, subject)
    except WriteError as error:
        raise NotReported(error, {name: results}) from error


def _write(target: Path, name: str, results: Mapping[str, TaskResult], subject: Mapping[str, object]) -> Path:
    lines = [
        json.dumps({"task": task, **to_section(plain(sample))}, ensure_ascii=False)
        for task, result in results.items()
        for sample in result.samples[:SAMPLES]
    ]
    if lines:
        write_file(target / f"{name}-samples.jsonl", "".join(f"{line}\n" for line in lines))
    tasks = {
        task: {
            "version": result.version,
            "n": result.n,
            "metrics": result.metrics,
            "settings": result.settings,
        }
        for task, result in results.items()
    }
    record = plain({"format": FORMAT, "name": name, "subject": dict(subject), "tasks": tasks})
    said = {**to_section(record), **({SAMPLES_SUM: sum_of_lines(lines)} if lines else {})}
    path = target / f"{name}.json"
    tell_replaced(path, to_section(record))
    write_file(path, json.dumps(with_sum(said), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def sum_of_lines(lines: Sequence[str]) -> str:
    """sha256 (hex) of the lines of a file of samples."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
