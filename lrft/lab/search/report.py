"""A search as Markdown, CSV and JSON, and a plot of its fronts where there is something to draw it with."""

from __future__ import annotations

import json
from pathlib import Path

from lrft.lab.runs.picture import Axes, can_draw, drawn
from lrft.lab.runs.report import table_lines, write_files
from lrft.lab.search.front import COSTS, Cost
from lrft.lab.search.record import Found, Row
from lrft.lab.search.state import STEM

PLOT = f"{STEM}.png"
NUMBERS = ("score", "loss", "eval_loss", "trainable", "bytes", "step_seconds", "seconds", "run")
HEADS = {"trainable": "trainable", "bytes": "bytes", "step_seconds": "s/step"}


def write_report(record: Found, out: Path) -> Path:
    """Write search.md, search.csv, search.json and, where it can be drawn, search.png; returns search.md.

    Raises:
        WriteError: the folder cannot be written.
    """
    heads, *rows = cells(record)
    lines = [f"# {Path(record['recipe']).stem} by {record['metric']}", "", f"`{record['command']}`", ""]
    lines += [*sentences(record), ""]
    lines += [*table_lines(heads, rows), ""]

    def page(pictured: bool) -> list[str]:
        return [*lines, f"![fronts]({PLOT})" if pictured else "No plot: matplotlib is not installed.", ""]

    heads = ["arm", *record["keys"], *NUMBERS, "front", "failure"]
    numbers = [_written(record, row) for row in record["rows"]]
    return write_files(out, STEM, record, [heads, *numbers], lambda path: draw(record, path), page)


def sentences(record: Found) -> list[str]:
    """What there is to say of a search beside its table."""
    count = len(record["rows"])
    found = [f"{count} arms by {record['method']['method']}, seed {record['seed']}."]
    if record["exhausted"]:
        found[0] = (
            f"{found[0][:-1]}; there are no others, so {record['budget'] - count} of the budget are left."
        )
    if record["refused"]:
        found.append(
            f"{record['refused']} configurations came up that are no recipe, such as: {record['refusal']}"
        )
    failed = [row for row in record["rows"] if row["failure"] is not None]
    if failed:
        found.append(f"{len(failed)} arms have no score; arm {failed[0]['arm']}: {failed[0]['failure']}")
    best = record["rows"][0] if record["best"] is not None else None
    found.append(
        "No arm has a score, so there is no best recipe."
        if best is None
        else f"Best is arm {best['arm']} ({best['label']}), {record['metric']} {best['score']:.4f}: "
        f"{record['best_recipe']}."
    )
    return found


def cells(record: Found) -> list[list[str]]:
    """The heads, and one row an arm, the best first; the last cell names the costs on whose front it stands."""
    found = [["arm", *record["keys"], record["metric"], *HEADS.values(), "front"]]
    for row in record["rows"]:
        score = "failed" if row["score"] is None else f"{row['score']:.4f}"
        seconds = "" if row["step_seconds"] is None else f"{row['step_seconds']:.3g}"
        costs = [f"{row['trainable']:,}", f"{row['bytes']:,}", seconds]
        on = ", ".join(HEADS[cost] for cost in row["front"])
        found.append([str(row["arm"]), *_values(record, row), score, *costs, on])
    return found


def draw(record: Found, path: Path) -> bool:
    """A panel for each cost: every arm a dot, its front a line; False where matplotlib is not installed."""
    if not can_draw():
        return False
    with drawn(path, (12, 4)) as figure:
        for axes, cost in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS, strict=True):
            _panel(axes, record, cost)
    return True


def points(record: Found, cost: Cost, on_front: bool = False) -> list[tuple[float, float]]:
    """(cost, score) of every arm that has both, or of those on the front, in order of the cost."""
    found = []
    for row in record["rows"]:
        at, score = row[cost], row["score"]
        if at is not None and score is not None and (cost in row["front"] or not on_front):
            found.append((float(at), score))
    return sorted(found)


def _panel(axes: Axes, record: Found, cost: Cost) -> None:
    for on_front, form in ((False, "o"), (True, "-")):
        if found := points(record, cost, on_front):
            drawn = {"drawstyle": "steps-post"} if on_front else {"alpha": 0.5}
            axes.plot(*zip(*found, strict=True), form, **drawn)
    axes.set(xlabel=HEADS[cost], ylabel=record["metric"], xscale="log")


def _values(record: Found, row: Row) -> list[str]:
    """What was set, empty where the arm's methods have no such key."""
    return [_text(row["values"][key]) if key in row["values"] else "" for key in record["keys"]]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _written(record: Found, row: Row) -> list[object]:
    """A row of the CSV: full precision, empty where there is nothing."""
    numbers = [
        row[name] for name in ("score", "loss", "eval_loss", "trainable", "bytes", "step_seconds", "seconds")
    ]
    told = ["" if number is None else number for number in numbers]
    return [
        row["arm"],
        *_values(record, row),
        *told,
        row["run"],
        " ".join(row["front"]),
        row["failure"] or "",
    ]
