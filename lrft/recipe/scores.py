"""What is scored while a recipe trains, and which score may say what the best step is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lrft.registry.axes import TASKS
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem
from lrft.registry.json import Json

if TYPE_CHECKING:
    from lrft.recipe.clashes import Settings

LOSS = "loss"  # of the held-out rows: what `train.metric` is by default


def directions(tasks: Json) -> dict[str, str]:
    """`TASK.SCORE` of every task of `eval.tasks` -> `higher` or `lower`, whichever is better, in their order."""
    return {
        f"{label}.{score}": better
        for label, name in _labels(tasks)
        for score, better in TASKS.declared(name).better.items()
    }


def _labels(tasks: Json) -> Iterator[tuple[str, str]]:
    """What a task is called in the results, and its name: one that is listed twice is `name` and `name-2`."""
    seen: Counter[str] = Counter()
    for one in tasks if isinstance(tasks, list) else []:
        name = one.get("method") if isinstance(one, dict) else one
        if isinstance(name, str) and name in TASKS.names():
            seen[name] += 1
            yield name if seen[name] == 1 else f"{name}-{seen[name]}", name


def _metric_that_nobody_takes(settings: Settings) -> Iterator[Problem]:
    metric = settings.text("train.metric")
    if metric == LOSS:
        if settings["train.patience"] is not None and settings["train.eval_every"] is None:
            message = "counts scores of the held-out loss, and none is taken; write train.eval_every: STEPS"
            yield Problem("train.patience", message)
        return
    known = directions(settings["eval.tasks"])
    if metric not in known:
        task = metric.partition(".")[0]
        unlisted = task in TASKS.names() and not any(name.startswith(f"{task}.") for name in known)
        remedy = f"; add {task} there" if unlisted else did_you_mean(metric, [LOSS, *known])
        yield Problem("train.metric", f"no task of eval.tasks has the score {metric!r}{remedy}")
    elif settings["train.eval_tasks_every"] is None:
        message = f"{metric} is never taken while the run trains; write train.eval_tasks_every: STEPS"
        yield Problem("train.metric", message)


def _tasks_that_are_not_there(settings: Settings) -> Iterator[Problem]:
    for key in ("train.eval_tasks_every", "eval.at_end"):
        if settings[key] not in (None, False) and not settings["eval.tasks"]:
            yield Problem(key, "there is no task to score; name some in eval.tasks, or write null")


SCORES = (_metric_that_nobody_takes, _tasks_that_are_not_there)
