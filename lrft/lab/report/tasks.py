"""Tasks that were learnt one after the other: the held-out loss of each after every one, and what was forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrft.lab.report.read import RunData
from lrft.lab.report.weights import Table


def tasks(runs: Sequence[RunData]) -> Table | None:
    """One row for each time that all tasks of a run were scored; None where no run has tasks in turn."""
    found: list[tuple[str, Any]] = [
        (run.name, run.result["tasks"]) for run in runs if run.result and run.result.get("tasks")
    ]
    if not found:
        return None
    names: list[str] = list(dict.fromkeys(name for _, record in found for name in record["names"]))
    heads = ("run", "after", *names, "backward transfer")
    return Table(heads, [row for run, record in found for row in _rows(run, record, names)])


def _rows(run: str, record: Mapping[str, Any], names: Sequence[str]) -> Iterator[Sequence[str]]:
    own, losses = record["names"], record["losses"]
    for number, (after, row) in enumerate(zip(["before training", *own], losses, strict=False)):
        known = dict(zip(own, row, strict=False))
        transfer = record.get("backward_transfer") if number == len(losses) - 1 else None
        yield run, after, *(_number(known.get(name)) for name in names), _number(transfer)
    forgotten = record.get("forgetting", {})
    yield run, "forgetting", *(_number(forgotten.get(name)) for name in names), "-"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"
