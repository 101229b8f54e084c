"""What arms have in common, and in what they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.lab.runs.planned import Arm
from lrft.recipe.fields import keys_that_decide_rows
from lrft.recipe.resolved import compare, flat
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

# What decides the rows of a step, how many steps there are, and the numbers compared.
EQUAL = tuple(keys_that_decide_rows())


def labels(sources: Sequence[str]) -> list[str]:
    """A short name for each recipe: its stem, with as many folders before it as tell them apart.

    Raises:
        UsageError: the same recipe twice.
    """
    parts = [Path(source).with_suffix("").parts for source in sources]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError("a recipe is given twice; write what differs into a recipe that `extends` it")


def check_comparable(arms: Sequence[Arm]) -> None:
    """Refuse arms that would not see the same rows for the same number of steps.

    Raises:
        UsageError: names every key in which an arm differs from the first.
    """
    if len(arms) < 2:
        raise UsageError("a comparison needs two recipes or more, such as a.yaml b.yaml train.max_steps=50")
    lines = [
        f"  {key}: {ours!r} in {arms[0].label}, {theirs!r} in {arm.label}"
        for arm in arms[1:]
        for key, ours, theirs in compare(arms[0].recipe, arm.recipe)
        if any(key == equal or key.startswith(f"{equal}.") for equal in EQUAL)
    ]
    if lines:
        remedy = "give the value as an override, which holds for every recipe"
        raise UsageError("\n".join([f"these must be equal to compare recipes; {remedy}:", *lines]))


def differences(arms: Sequence[Arm]) -> dict[str, list[Json]]:
    """Keys in which the arms differ -> the value in each arm; rates and seeds, which are put in, left out."""
    found = [{".".join(map(str, keys)): value for keys, value in flat(arm.recipe).items()} for arm in arms]
    keys = dict.fromkeys(key for values in found for key in values)
    rows = {key: [values.get(key) for values in found] for key in keys}
    return {
        key: row
        for key, row in rows.items()
        if key not in ("optimizer.lr", "train.seed") and any(value != row[0] for value in row)
    }
