"""Two panels: the loss at each rate of the grid, and the final loss of each seed with its mean and interval."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Protocol

from lrft.files.write import fresh_file
from lrft.lab.compare.record import Comparison


class Axes(Protocol):
    """Matplotlib's, as far as it is drawn on."""

    def plot(self, *args: object, **settings: object) -> object: ...

    def errorbar(self, *args: object, **settings: object) -> object: ...

    def set_xticks(self, *args: object, **settings: object) -> object: ...

    def set(self, **settings: object) -> object: ...


def draw(record: Comparison, path: Path) -> bool:
    """Write the plot of a comparison's record; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 4), layout="constrained")
    tuning, final = figure.subplots(1, 2)
    for arm in record["arms"]:
        points = [(point["rate"], point["loss"]) for point in arm["grid"] if point["loss"] is not None]
        if points:
            tuning.plot(*zip(*points, strict=True), marker="o", label=arm["label"])
    if record["tuning_seed"] is not None:
        tuning.set(
            xscale="log", xlabel="rate", ylabel=record["metric"], title=f"seed {record['tuning_seed']}"
        )
        tuning.legend()
    else:
        tuning.set_axis_off()
    _final(final, record)
    with fresh_file(path, f"--out {path.parent}: {path.name}") as scratch:
        figure.savefig(scratch, dpi=120, format="png")
    return True


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
