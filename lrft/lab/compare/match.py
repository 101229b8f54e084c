"""Ranks that give every arm the first arm's budget, counted from the modules that training would attach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lrft.build.measured import Measured
from lrft.lab.models import Models
from lrft.lab.runs.planned import Arm
from lrft.registry.errors import LrftError, UsageError

LARGEST_RANK = 2**16
NEIGHBOURS = 16  # ranks looked at beside one that the adapter refuses


@dataclass(frozen=True)
class Matched:
    """What an arm costs, and how its rank came about.

    Attributes:
        rank, before: its rank, and the one its recipe has; None without an adapter.
        trainable: numbers that train at the start, before anything moves ranks.
        state_bytes: of adapter and optimizer state together.
    """

    label: str
    rank: int | None
    before: int | None
    trainable: int
    state_bytes: int


def match(
    arms: Sequence[Arm], by: Literal["params", "memory", "steps"], models: Models | None = None
) -> tuple[list[Arm], list[Matched]]:
    """The arms with `adapter.rank` set so that each comes nearest to the first; alpha stays as written.

    Args:
        by: `params`, trainable numbers; `memory`, bytes of adapter and optimizer state; `steps`, ranks stay.

    Raises:
        UsageError: an arm other than the first has no rank to change.
    """
    models = models or Models()
    found = list(arms)
    if by != "steps":
        target = _budget(models.weigh(arms[0].recipe), by)
        found = [arms[0], *(_fit(arm, target, by, models) for arm in arms[1:])]
    table = []
    for arm, before in zip(found, arms, strict=True):
        cost = models.weigh(arm.recipe)
        state = cost["trainable_bytes"] + cost["optimizer_bytes"]
        table.append(Matched(arm.label, rank(arm), rank(before), cost["trainable"], state))
    return found, table


def rank(arm: Arm) -> int | None:
    """The arm's `adapter.rank`, if it has one."""
    value = getattr(arm.recipe.adapter, "rank", None)
    return value if isinstance(value, int) else None


def nearest_rank(count: Callable[[int], int | None], target: int, start: int) -> int:
    """The rank whose count is nearest to the target; on a tie `start`, then the smaller.

    Args:
        count: what a rank costs, growing with it throughout or falling throughout; None where the adapter refuses it.

    Raises:
        ValueError: every rank that was tried is refused, or all cost the same.
    """
    known: dict[int, int | None] = {}

    def cost(at: int) -> int | None:
        if at not in known:
            known[at] = count(at)
        return known[at]

    falls = _falls(cost, start)

    def before(found: int) -> bool:
        return found > target if falls else found < target

    low, high = 0, 1
    while high < LARGEST_RANK and ((found := cost(high)) is None or before(found)):
        low = high if found is not None else low
        high *= 2
    if low and cost(high) is None:
        high = 2 * low  # refused, as is everything that was tried above it
    while high - low > 1:
        middle = (low + high) // 2
        near = [at for step in range(NEIGHBOURS) for at in (middle - step, middle + step) if low < at < high]
        at = next((at for at in near if cost(at) is not None), None)
        found = None if at is None else cost(at)
        if at is None or found is None:
            high = middle  # refused from here on, or nothing usable around
        elif before(found):
            low = at
        else:
            high = at
    usable = {at: found for at, found in known.items() if found is not None}
    if not usable:
        raise ValueError("no rank is possible")
    return min(usable, key=lambda at: (abs(usable[at] - target), at != start, at))


def _falls(cost: Callable[[int], int | None], start: int) -> bool:
    """Whether a larger rank costs less, as where the rank is that of many random products.

    Raises:
        ValueError: no rank costs anything else.
    """
    here, others = cost(start), (2 * start, start // 2)
    found = [(other, there) for other in others if other and (there := cost(other)) is not None]
    for other, there in found:
        if here is not None and here != there:
            return (there < here) == (other > start)
    if here is not None and found:
        raise ValueError("its rank does not change what trains; give it first")
    return False


def _fit(arm: Arm, target: int, by: str, models: Models) -> Arm:
    start = rank(arm)
    if start is None:
        raise UsageError(
            f"--match {by}: {arm.label} has no adapter.rank to change; give it first, so that the others are "
            "matched to it, or use --match steps"
        )

    def count(at: int) -> int | None:
        try:
            recipe = arm.changed(f"adapter.rank={at}").recipe
            return _budget(models.weigh(recipe, by == "memory"), by)
        except (LrftError, ValueError):
            return None

    try:
        chosen = nearest_rank(count, target, start)
    except ValueError as error:
        raise UsageError(f"--match {by}: {arm.label}: {error}; use --match steps") from None
    return arm if chosen == start else arm.changed(f"adapter.rank={chosen}")


def _budget(cost: Measured, by: str) -> int:
    return int(cost["trainable"] if by == "params" else cost["trainable_bytes"] + cost["optimizer_bytes"])
