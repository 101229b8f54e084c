"""The curves as PNG files, drawn by matplotlib without a display."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrft.lab.report.curves import charts_of, lines_of
from lrft.lab.report.page import DETAILS
from lrft.lab.report.read import RunData
from lrft.lab.runs.picture import can_draw, drawn
from lrft.registry.errors import MissingExtra

STYLES: dict[str, dict[str, Any]] = {
    "line": {"linewidth": 1.0},
    "dashed": {"linestyle": "--"},
    "dots": {"marker": "o", "markersize": 3},
}


def check_matplotlib() -> None:
    """Say now, and not after an inspection, that matplotlib is missing.

    Raises:
        MissingExtra: the message holds the install line.
    """
    if not can_draw():
        raise MissingExtra(
            "--png: curves are drawn by matplotlib; install it with `pip install 'lrft[plot]'`, or leave the flag out: "
            "the page draws its own"
        )


def draw_all(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Write one file a chart that has a point; a colour a run in all of them.

    Raises:
        WriteError: a file cannot be written.
    """
    return [
        path
        for title, columns in charts_of(runs).items()
        if (path := _draw(runs, title, columns, folder)) is not None
    ]


def _draw(runs: Sequence[RunData], title: str, columns: dict[str, str], folder: Path) -> Path | None:
    lines = lines_of(runs, columns, DETAILS[0].points)
    if not any(y is not None for line in lines for _, y in line.points):
        return None
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', next(iter(columns)).lower()).strip('-')}.png"
    with drawn(path, (8, 4), "--png") as figure:
        axes = figure.subplots()
        for line in lines:
            xs, ys = zip(*line.points, strict=True)
            values = [float("nan") if y is None else y for y in ys]
            axes.plot(xs, values, color=f"C{line.run % 10}", label=line.label, **STYLES[line.kind])
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="small")
    return path
