"""Two panels: the loss at each rate of the grid, and the final loss of each seed with its mean and interval."""

from __future__ import annotations

from pathlib import Path

from lrft.lab.compare.record import Comparison
from lrft.lab.runs.picture import Axes, can_draw, drawn


def draw(record: Comparison, path: Path) -> bool:
    """Write the plot of a comparison's record; False where matplotlib is not installed."""
    if not can_draw():
        return False
    with drawn(path, (10, 4)) as figure:
        tuning, final = figure.subplots(1, 2)
        _tuning(tuning, record)
        _final(final, record)
    return True


def _tuning(axes: Axes, record: Comparison) -> None:
    """A line an arm through the losses of its rates."""
    for arm in record["arms"]:
        points = [(point["rate"], point["loss"]) for point in arm["grid"] if point["loss"] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=arm["label"])
    if record["tuning_seed"] is not None:
        axes.set(xscale="log", xlabel="rate", ylabel=record["metric"], title=f"seed {record['tuning_seed']}")
        axes.legend()
    else:
        axes.set_axis_off()


def _final(axes: Axes, record: Comparison) -> None:
    """One column an arm: its seeds as dots, its mean with the interval as a bar."""
    arms = record["arms"]
    for place, arm in enumerate(arms):
        losses = [loss for loss in arm["losses"] if loss is not None]
        axes.plot([place] * len(losses), losses, "o", alpha=0.4)
        mean, interval = arm["mean"], arm["interval"]
        if mean is not None and interval is not None:
            below, above = mean - interval[0], interval[1] - mean
            axes.errorbar([place], [mean], yerr=[[max(below, 0)], [max(above, 0)]], fmt="_k", capsize=4)
    axes.set_xticks(range(len(arms)), [arm["label"] for arm in arms], rotation=30, ha="right")
    axes.set(ylabel=record["metric"], title=f"{len(record['seeds'])} seeds")
