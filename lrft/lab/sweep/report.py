"""A sweep as Markdown, CSV and JSON, and a plot where there is something to draw it with."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from importlib import import_module
from pathlib import Path

from lrft.files.write import fresh_file, write_file
from lrft.lab.sweep.sweep import Row, Sweep

REPORT, TABLE, RECORD, PLOT = "sweep.md", "sweep.csv", "sweep.json", "sweep.png"


def write_report(record: Sweep, out: Path) -> Path:
    """Write sweep.md, sweep.csv, sweep.json and, where it can be drawn, sweep.png; returns sweep.md.

    Raises:
        WriteError: the folder cannot be written.
    """
    heads, *rows = cells(record)
    lines = [f"# {Path(record['recipe']).stem} by {record['metric']}", "", f"`{record['command']}`", ""]
    lines += [_line(heads), _line(["---"] * len(heads)), *map(_line, rows), ""]
    if draw(record, out / PLOT):
        lines += [f"![{record['metric']}]({PLOT})", ""]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([*record["keys"], *NUMBERS])
    writer.writerows([_written(record, row) for row in record["rows"]])
    for file, text in (
        (REPORT, "\n".join(lines)),
        (RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n"),
        (TABLE, table.getvalue()),
    ):
        write_file(out / file, text, f"--out {out}: {file}")
    return out / REPORT


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


def _line(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"


def draw(record: Sweep, path: Path) -> bool:
    """The score against the first key whose values are numbers, a curve for each of the rest; else a dot a point.

    False where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    figure = import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
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
    with fresh_file(path, f"--out {path.parent}: {path.name}") as scratch:
        figure.savefig(scratch, dpi=120, format="png")
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
