"""Scores before and after training, and samples side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrft.lab.report.read import RunData
from lrft.lab.report.weights import Table

LONGEST = 1500  # characters of a text that are shown


@dataclass(frozen=True)
class Output:
    """What one subject answered; `run` decides the colour, None is the base before training."""

    title: str
    run: int
    text: str
    verdict: str


@dataclass(frozen=True)
class Sample:
    """One row of a task with what everybody answered."""

    task: str
    prompt: str
    reference: str
    outputs: Sequence[Output]


def columns_of(runs: Sequence[RunData]) -> list[tuple[int, str, str]]:
    """Number of the run, label and heading of everything that was scored."""
    return [
        (number, label, f"{run.name}, {'before' if label == 'baseline' else 'after'}")
        for number, run in enumerate(runs)
        for label in run.evaluations
    ]


def scores(runs: Sequence[RunData]) -> Table | None:
    """Metrics down, what was scored across, standard errors behind their metric; None where nothing was scored."""
    columns = columns_of(runs)
    if not columns:
        return None
    tasks = [runs[number].evaluations[label].record.get("tasks", {}) for number, label, _ in columns]
    keys = dict.fromkeys((task, metric) for found in tasks for task, metric in _metrics(found))
    rows = [
        (task, metric, *(_score(found.get(task, {}), metric) for found in tasks)) for task, metric in keys
    ]
    return Table(("task", "metric", *(heading for _, _, heading in columns)), rows)


def samples(runs: Sequence[RunData], most: int) -> tuple[list[Sample], int]:
    """The first `most` rows of all tasks, with the answers to the very same prompt, and how many rows there are."""
    rows: dict[tuple[str, str], dict[tuple[int, str], Mapping[str, Any]]] = {}
    for number, label, _ in columns_of(runs):
        for sample in runs[number].evaluations[label].samples:
            key = str(sample.get("task", "")), str(sample.get("prompt", ""))
            rows.setdefault(key, {}).setdefault((number, label), sample)
    headings = {(number, label): heading for number, label, heading in columns_of(runs)}
    shown = [
        Sample(
            task,
            _shortened(prompt),
            _shortened(_text(next(iter(found.values())).get("reference"))),
            [
                Output(headings[key], key[0], _shortened(_text(sample.get("output"))), _verdict(sample))
                for key, sample in found.items()
            ],
        )
        for (task, prompt), found in list(rows.items())[:most]
    ]
    return shown, len(rows)


def _metrics(tasks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for task, found in tasks.items():
        for metric in found.get("metrics", {}):
            if not metric.endswith("_stderr"):
                yield task, metric


def _score(task: Mapping[str, Any], metric: str) -> str:
    metrics = task.get("metrics", {})
    value, error = metrics.get(metric), metrics.get(f"{metric}_stderr")
    if not isinstance(value, int | float):
        return "-"
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    text += f" ± {error:.4f}" if isinstance(error, float) and math.isfinite(error) else ""
    return f"{text} (n={task['n']})" if "n" in task else text


def _verdict(sample: Mapping[str, Any]) -> str:
    correct = sample.get("correct")
    return {True: "correct", False: "wrong"}.get(correct, "") if isinstance(correct, bool) else ""


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _shortened(text: str) -> str:
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]} [{more:,} more characters]"
