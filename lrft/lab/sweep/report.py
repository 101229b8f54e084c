"""A sweep as Markdown, CSV and JSON, and a plot where there is something to draw it with."""

from __future__ import annotations

from pathlib import Path

from lrft.lab.runs.picture import Axes, can_draw, drawn
from lrft.lab.runs.report import table_lines, write_files
from lrft.lab.sweep.sweep import STEM, Row, Sweep

PLOT = f"{STEM}.png"


def write_report(record: Sweep, out: Path) -> Path:
    """Write sweep.md, sweep.csv, sweep.json and, where it can be drawn, sweep.png; returns sweep.md.

    Raises:
        WriteError: the folder cannot be written.
    """
    heads, *rows = cells(record)
    lines = [f"# {Path(record['recipe']).stem} by {record['metric']}", "", f"`{record['command']}`", ""]
    lines += [*table_lines(heads, rows), ""]

    def page(pictured: bool) -> list[str]:
        return [*lines, *([f"![{record['metric']}]({PLOT})", ""] if pictured else [])]

    heads = [*record["keys"], *NUMBERS]
    numbers = [_written(record, row) for row in record["rows"]]
    return write_files(out, STEM, record, [heads, *numbers], lambda path: draw(record, path), page)


NUMBERS = ("score", "loss", "eval_loss", "trainable", "seconds", "run")


def _written(record: Sweep, row: Row) -> list[object]:
    """A row of the CSV: full precision, empty where there is nothing."""
    values: list[object] = [row["values"][key] for key in record["keys"]]
    numbers = [row["score"], row["loss"], row["eval_loss"], row["trainable"], row["seconds"], row["run"]]
    return [*values, *("" if number is None else number for number in numbers)]


def cells(record: Sweep) -> list[list[str]]:
    """The heads, and one row a point, the best first."""
    found = [[*record["keys"], record["metric"], "trainable", "seconds", "run"]]
    for row in record["rows"]:
        score = "diverged" if row["score"] is None else f"{row['score']:.4f}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        values = [row["values"][key] for key in record["keys"]]
        found.append([*values, score, f"{row['trainable']:,}", seconds, row["run"]])
    return found


def draw(record: Sweep, path: Path) -> bool:
    """The score against the first key whose values are numbers, a curve for each of the rest; else a dot a point.

    False where matplotlib is not installed.
    """
    if not can_draw():
        return False
    with drawn(path, (6, 4)) as figure:
        _plot(figure.subplots(), record)
    return True


def _plot(axes: Axes, record: Sweep) -> None:
    rows = [row for row in record["rows"] if row["score"] is not None]
    key = next((key for key in record["keys"] if all(_is_number(row["values"][key]) for row in rows)), None)
    if key is None:
        axes.plot([row["label"] for row in rows], [row["score"] for row in rows], "o")
        axes.tick_params(axis="x", rotation=30)
    else:
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            rest = ", ".join(v for k, v in row["values"].items() if k != key)
            assert row["score"] is not None, "left out above"
            curves.setdefault(rest, []).append((float(row["values"][key]), row["score"]))
        for rest, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=rest)
        axes.set(xlabel=key)
        if len(curves) > 1:
            axes.legend()
        if all(x > 0 for points in curves.values() for x, _ in points):
            axes.set(xscale="log")
    axes.set(ylabel=record["metric"])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
