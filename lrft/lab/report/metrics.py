"""What metrics.jsonl holds, as one column of points for each key, and thinned to what a picture can show."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path

from lrft.files.read import LINES, open_regular

Point = tuple[float, float | None]
"""A step and its value; None where that is no finite number, which leaves a gap in the curve."""


@dataclass(frozen=True)
class Metrics:
    """The steps of a run.

    Attributes:
        columns: key -> a point for every step that has it.
        step: the last step that was written down, 0 before the first.
        lines: how many lines there are.
        damaged: numbers of lines that could not be read. The last one of a run that was killed is not counted.
    """

    columns: dict[str, list[Point]] = field(default_factory=dict)
    step: int = 0
    lines: int = 0
    damaged: list[int] = field(default_factory=list)

    def last(self, key: str) -> float | None:
        """The last finite value of a column."""
        values = (value for _, value in reversed(self.columns.get(key, [])) if value is not None)
        return next(values, None)


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.jsonl; none is the same as an empty one."""
    columns: dict[str, list[Point]] = {}
    damaged: list[int] = []
    step = lines = 0
    cut = False
    if os.path.lexists(path):
        with TextIOWrapper(open_regular(path, LINES, path.parent), "utf-8", errors="replace") as file:
            for lines, line in enumerate(file, 1):
                cut = not line.endswith("\n")
                record = _record(line)
                if record is None:
                    damaged.append(lines)
                    continue
                step = int(record.pop("step"))
                for key, value in record.items():
                    columns.setdefault(key, []).append((step, value if math.isfinite(value) else None))
    if cut and damaged and damaged[-1] == lines:  # a kill while it was written
        damaged.pop()
    return Metrics(columns, step, lines, damaged)


def _record(line: str) -> dict[str, float] | None:
    """The numbers of a line, its step among them; None where it is no such line."""
    try:
        found = json.loads(line)
        numbers = {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return numbers if math.isfinite(numbers.get("step", math.nan)) else None


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of the points: of each stretch the lowest and the highest, so that no spike is lost.

    The first and the last point stay. A stretch with a gap in it keeps one.
    """
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    inner = points[1:-1]
    found = [points[0]]
    for number in range(stretches):
        begin, end = (len(inner) * place // stretches for place in (number, number + 1))
        found += _extremes(inner[begin:end])
    return [*found, points[-1]]


def _extremes(stretch: Sequence[Point]) -> list[Point]:
    known = [(x, y) for x, y in stretch if y is not None]
    gap = next((point for point in stretch if point[1] is None), None)
    kept: set[Point] = set() if gap is None else {gap}
    if known:
        kept |= {min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])}
    return sorted(kept, key=lambda point: point[0])
