"""`lrft plan --predict`: what a whole training will cost and reach, from short runs of the same recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from lrft.api.planning.power_law import FEWEST, Continued, proceed
from lrft.core.notes import say
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.resolved import flat
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder, find
from lrft.training.relied import own_recipe

BINS = 20  # means of training losses
FELL = 0.5  # share of the largest rate below which that of a run's end is told
SIZES = 3  # batch sizes that a line through throughputs takes
BATCH = ("train.batch_size", "train.gradient_accumulation")
# What a short run may have otherwise: its length, what it writes and what it is looked at with.
OTHERWISE = (
    *(
        "train.max_steps",
        "train.epochs",
        "train.seed",
        "train.save_every",
        "train.eval_every",
        "train.keep_last",
    ),
    *("logging", "eval", "export", "analyse", "name", "description"),
)


class Speed(TypedDict):
    """Rows a second; `a` and `b` of a + b ln(rows of a step), where batch sizes were fitted, and the error of that."""

    rows_per_second: float
    a: float | None
    b: float | None
    rmse: float | None
    runs: list[str]


class Quality(TypedDict):
    """The loss at the end, with its interval; `tried` is what the first two thirds of the points said of the last."""

    metric: str
    loss: float
    low: float
    high: float
    floor: float
    alpha: float
    points: int
    times_as_far: float
    tried: float
    seen: float
    run: str


class Predicted(TypedDict):
    """What `lrft plan --predict` adds; `cost` is None without a price."""

    steps: int
    seconds: float
    cost: float | None
    speed: Speed
    quality: Quality


def predict(
    recipe: LoadedRecipe | Path | str,
    runs: Sequence[Path | str],
    price: float | None = None,
    *,
    overrides: Sequence[str] = (),
) -> Predicted:
    """Cost and loss of a training, from the lines of short runs.

        rows a second = a + b ln(rows of a step)     by least squares over three batch sizes or more; with fewer, the
                                                     median of the runs that have the recipe's
        loss(step)    = E + A step^-alpha            of the longest run with the recipe's batch
        cost          = steps * rows of a step / rows a second / 3600 * price

    The first is the form of Xia et al., "Understanding the Performance and Estimating the Cost of LLM Fine-Tuning",
    2024, arXiv 2408.04693, its constants fitted here and never taken over. The second is the continuation from a short
    run. Predictors that take no run, a head on frozen states and a curve over demonstrations, are `lrft choose`'s.

    Args:
        runs: run folders of the recipe, shorter ones or with other batch sizes.
        price: of an hour, in any currency.

    Raises:
        UsageError: a run is of another recipe, or there are too few points or batch sizes.
    """
    loaded = as_loaded(recipe, overrides).recipe
    steps = loaded.train.max_steps
    if steps is None:
        raise UsageError("--predict: the recipe does not say how many steps it has; write train.max_steps")
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise UsageError(f"--price {price}: write what an hour costs, 0 or more")
    short = [_short(loaded, find(run)) for run in runs]
    speed = _speed(loaded, short)
    seconds = steps * _rows(loaded) / speed["rows_per_second"]
    return {
        "steps": steps,
        "seconds": seconds,
        "cost": None if price is None else seconds / 3600 * price,
        "speed": speed,
        "quality": _quality(loaded, short, steps),
    }


class _Run(TypedDict):
    name: str
    rows: int
    lines: list[dict[str, Any]]


def _short(recipe: Recipe, folder: RunFolder) -> _Run:
    before = own_recipe(folder.path).recipe
    mine, theirs = (
        {".".join(map(str, key)): value for key, value in flat(one).items()} for one in (recipe, before)
    )
    differ = [
        key
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key) and key not in BATCH and not _is_free(key)
    ]
    if differ:
        told = ", ".join(f"{key}: {theirs.get(key)!r} -> {mine.get(key)!r}" for key in differ[:3])
        raise UsageError(f"--predict {folder.path}: it is a run of another recipe ({told})")
    return {"name": folder.path.name, "rows": _rows(before), "lines": folder.metrics()}


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in OTHERWISE)


def _rows(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.train.gradient_accumulation


def _speed(recipe: Recipe, runs: Sequence[_Run]) -> Speed:
    measured = []
    for run in runs:
        seconds = [
            line["seconds"] for line in run["lines"][1:] if line.get("seconds")
        ]  # the first step warms up
        if seconds:
            measured.append((run["name"], run["rows"], run["rows"] / median(seconds)))
    wanted = _rows(recipe)
    names = [name for name, _, _ in measured]
    if len({rows for _, rows, _ in measured}) >= SIZES:
        a, b, rmse = line_through([(math.log(rows), rate) for _, rows, rate in measured])
        rate = a + b * math.log(wanted)
        if rate <= 0:
            raise UsageError(
                f"--predict: the line through the runs' throughputs is {rate:.3g} rows a second at {wanted} rows a "
                "step; give a run with a batch nearer to the recipe's"
            )
        return {"rows_per_second": rate, "a": a, "b": b, "rmse": rmse, "runs": names}
    same = [(name, rate) for name, rows, rate in measured if rows == wanted]
    if not same:
        raise UsageError(
            f"--predict: no run with a step after its first has the recipe's {wanted} rows a step, and a line through "
            f"other batches takes {SIZES} of them; give such a run"
        )
    rate = median(rate for _, rate in same)
    return {"rows_per_second": rate, "a": None, "b": None, "rmse": None, "runs": [name for name, _ in same]}


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Intercept, slope and root mean square error of the least-squares line."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    b = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    a = mean_y - b * mean_x
    return a, b, math.sqrt(sum((a + b * x - y) ** 2 for x, y in points) / n)


def _quality(recipe: Recipe, runs: Sequence[_Run], steps: int) -> Quality:
    name = recipe.objective.method
    if "draws" in OBJECTIVES.declared(name).provides:
        raise UsageError(
            f"--predict: the loss of {name} does not say how good answers are, so its curve says nothing; leave it out"
        )
    same = [run for run in runs if run["rows"] == _rows(recipe)]
    if not same:
        raise UsageError(
            f"--predict: no run has the recipe's {_rows(recipe)} rows a step, whose loss could go on; give such a run"
        )
    run = max(same, key=lambda one: len(one["lines"]))
    metric, points = _points(run["lines"])
    if len(points) < FEWEST:
        raise UsageError(
            f"--predict {run['name']}: it has {len(points)} losses, and a curve takes {FEWEST}; train a few more steps"
        )
    at, losses = [float(step) for step, _ in points], [loss for _, loss in points]
    if min(losses) < 0:
        raise UsageError(
            f"--predict {run['name']}: the losses of {name} go below 0, where no curve E + A step^-alpha with E of "
            "0 or more can go; leave it out"
        )
    found = proceed(at, losses, steps)
    _doubt(run, found)
    early = max(FEWEST, len(points) * 2 // 3)
    tried = proceed(at[:early], losses[:early], at[-1])
    return {
        "metric": metric,
        "loss": found.loss,
        "low": found.low,
        "high": found.high,
        "floor": found.curve.floor,
        "alpha": found.curve.alpha,
        "points": len(points),
        "times_as_far": steps / at[-1],
        "tried": tried.loss,
        "seen": losses[-1],
        "run": run["name"],
    }


def _doubt(run: _Run, found: Continued) -> None:
    """Tell what makes the curve's word worth less."""
    if not found.curve.scale:
        say(f"--predict {run['name']}: its losses do not fall, so their mean is gone on with")
    rates = [line["lr"] for line in run["lines"] if line.get("lr") is not None]
    if rates and rates[-1] < FELL * max(rates):
        say(
            f"--predict {run['name']}: its rate fell to {rates[-1] / max(rates):.0%} of its largest by its own end, "
            "which lowers the last losses as no longer run's are by then"
        )


def _points(lines: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[float, float]]]:
    """Held-out losses where there are enough; else means of training losses over runs of steps."""
    held_out = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    if len(held_out) >= FEWEST:
        return "eval_loss", held_out
    losses = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    width = max(1, -(-len(losses) // BINS))
    bins = [losses[k : k + width] for k in range(0, len(losses) - width + 1, width)]
    return "loss", [(sum(s for s, _ in one) / len(one), sum(x for _, x in one) / len(one)) for one in bins]
