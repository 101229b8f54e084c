"""What arms are ordered by: a loss, or a score of a task, taken at the last step of every arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrft.lab.runs.planned import AT_THE_END, UNSCORED, Arm
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.recipe.scores import directions
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError, UsageError

LOSSES = ("eval_loss", "loss")


@dataclass(frozen=True)
class Metric:
    """What arms are ordered by: a key of the last line of metrics.jsonl."""

    name: str
    higher: bool


def judged_arm(label: str, source: str, overrides: Sequence[str], metric: str) -> Arm:
    """An arm which scores what is asked for at its last step if not more often.

    Raises:
        RecipeError: the recipe is not valid, or has no held-out rows for the metric.
    """
    recipe = load_recipe(source, overrides).recipe
    due = []
    if recipe.data.holds_out and recipe.train.eval_every is None:
        due.append(f"train.eval_every={AT_THE_END}")
    if metric not in LOSSES and recipe.eval.tasks and recipe.train.eval_tasks_every is None:
        due.append(f"train.eval_tasks_every={AT_THE_END}")
    if recipe.eval.at_end is None:
        due.append(UNSCORED)
    if metric == LOSSES[0] and not recipe.data.holds_out:
        message = "arms are judged by held-out rows; add data.eval=FILE, or choose --metric loss"
        raise RecipeError(message, "data.eval")
    together = (*overrides, *due)
    recipe = load_recipe(source, together).recipe if due else recipe
    return Arm(label, source, together, recipe, label)


def metric_of(recipes: Sequence[Recipe], name: str) -> Metric:
    """The metric and its direction.

    Raises:
        UsageError: a recipe does not take it.
    """
    if name in LOSSES:
        return Metric(name, higher=False)
    scores = [directions([{"method": task.method} for task in recipe.eval.tasks]) for recipe in recipes]
    found = {of_one.get(name) for of_one in scores}
    if len(found) > 1 or None in found:
        known = [*LOSSES, *scores[0]]
        raise UsageError(
            f"--metric {name}: not every point has this score{did_you_mean(name, known)}; there are {', '.join(known)}"
        )
    return Metric(name, higher=found == {"higher"})
