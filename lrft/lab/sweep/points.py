"""The points of a sweep: every combination of the values written, or the arms of a file, or both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.core import stop
from lrft.lab.runs import judged
from lrft.lab.runs.judged import Metric
from lrft.lab.runs.planned import Arm
from lrft.recipe.document import parse, read_text
from lrft.recipe.merge import is_override
from lrft.recipe.tree import Place
from lrft.registry.errors import DamagedFile, RecipeError, UsageError

MOST = 10_000  # points, of which each is a training
OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        arm: the recipe with everything set.
        values: key that differs between the points -> what is written for it here, `arm` being one.
    """

    arm: Arm
    values: dict[str, str]


def points_of(source: str, arguments: Sequence[str], arms: Path | None, metric: str) -> list[Point]:
    """Every point in the order written, the last key changing fastest.

    Args:
        arguments: overrides; one with several values, `adapter.rank=4,8,16`, is swept over.
        arms: a file of named lists of overrides; every combination is made with each.
        metric: `eval_loss`, `loss`, or TASK.SCORE of one of the recipe's `eval.tasks`.

    Raises:
        UsageError: nothing varies or too much does, a value or a name is there twice, or no task has the score.
        RecipeError: a combination is no valid recipe; its values are named.
    """
    fixed, varied = _split(arguments)
    named = _arms(arms) if arms is not None else {}
    if not varied and not named:
        raise UsageError(
            "a sweep needs a key with several values, such as adapter.rank=4,8,16, or --arms FILE"
        )
    axes: list[list[tuple[str, str, tuple[str, ...]]]] = []
    if named:
        axes.append([("arm", name, tuple(overrides)) for name, overrides in named.items()])
    axes += [[(key, value, (f"{key}={value}",)) for value in values] for key, values in varied.items()]
    count = math.prod(map(len, axes))
    if count > MOST:
        raise UsageError(
            f"a sweep of {count:,} runs is one nobody waits for; write values for at most {MOST:,}"
        )
    found = []
    for chosen in itertools.product(*axes):
        stop.poll()
        values = {key: value for key, value, _ in chosen}
        overrides = [*fixed, *itertools.chain.from_iterable(written for _, _, written in chosen)]
        found.append(Point(_arm(source, values, overrides, metric, arms), values))
    return found


def metric_of(points: Sequence[Point], name: str) -> Metric:
    """The metric and its direction.

    Raises:
        UsageError: a point does not take it.
    """
    return judged.metric_of([point.arm.recipe for point in points], name)


def _arm(
    source: str, values: dict[str, str], overrides: Sequence[str], metric: str, arms: Path | None
) -> Arm:
    """The recipe of a point, which scores what is asked for at its last step if not more often."""
    label = ",".join(
        f"{key.rpartition('.')[2]}={value}" if key != "arm" else value for key, value in values.items()
    )
    try:
        return judged.judged_arm(label, source, overrides, metric)
    except RecipeError as error:
        file = "" if arms is None else f"--arms {arms}: "
        raise UsageError(f"{file}{label}: {error}") from None


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides with one value, and key -> values of those with several.

    Raises:
        UsageError: an argument is no override, or a value is there twice.
    """
    fixed: list[str] = []
    varied: dict[str, list[str]] = {}
    for argument in arguments:
        if not is_override(argument):
            raise UsageError(
                f"{argument}: a sweep has one recipe; write arms of others into a file for --arms"
            )
        key, equals, text = argument.partition("=")
        values = parts(text) if equals and not argument.startswith("~") else []
        if len(values) < 2:
            fixed.append(argument)
        elif "" in values or len(set(values)) < len(values) or key in varied:
            raise UsageError(
                f"{argument}: write every key once, and different values for it such as {key}=1,2,3"
            )
        else:
            varied[key] = values
    return fixed, varied


def parts(text: str) -> list[str]:
    """The text cut at its commas, those inside of brackets and quotes left alone."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING)
        if character == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found]


def _arms(path: Path) -> dict[str, list[str]]:
    """Name -> overrides, of a file such as `wide: [adapter.rank=64, adapter.alpha=128]`.

    Raises:
        UsageError: it cannot be read, or is no such mapping.
    """
    try:
        root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
        if problems:
            raise RecipeError(problems)
    except (DamagedFile, RecipeError) as error:
        raise UsageError(f"--arms {str(error).splitlines()[0]}") from None
    found = root.plain()
    form = "write a name and a list of overrides for each arm, such as `wide: [adapter.rank=64]`"
    if not isinstance(found, dict) or not found:
        raise UsageError(f"--arms {path}: {form}")
    for name, overrides in found.items():
        if not isinstance(overrides, list) or not all(
            isinstance(o, str) and is_override(o) for o in overrides
        ):
            raise UsageError(f"--arms {path}: {name[:80]}: {form}")
    return {
        name: [str(one) for one in overrides]
        for name, overrides in found.items()
        if isinstance(overrides, list)
    }
