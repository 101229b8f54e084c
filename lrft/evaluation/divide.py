"""Batches divided among processes, and their results put together as if one had scored them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import TypeVar

from lrft.core.team import ALONE, Team
from lrft.evaluation.subject import EvaluationStopped, Watch
from lrft.registry.errors import LrftError

Item = TypeVar("Item")
Found = TypeVar("Found")
STOPPED, FAILED = 1, 2  # what a process says of itself between two batches; the larger wins
GAP = object()  # a process has no batch in the last round


def divided(
    items: Iterable[Item],
    work: Callable[[Item], Found],
    watch: Watch,
    rows: Callable[[Item], int],
    team: Team = ALONE,
) -> list[Found]:
    """`work(item)` for every item, in the order of the items; item j falls to process j modulo their number.

    The items are those that one process would work on, so that every result is the same to the last bit. Where one
    process fails or is asked to stop, all do. Processes that go in step repeat an item where they have none.

    Args:
        rows: how many rows an item holds.

    Raises:
        EvaluationStopped: some process was asked to stop.
        LrftError: what `work` raised, here or elsewhere.
    """
    mine: list[Found] = []
    done = 0
    fault: LrftError | None = None
    watch.report(done)
    for group in _rounds(items, team.size):
        _agree(team, watch, done, fault, watch.should_stop())
        has_one = team.rank < len(group)
        if has_one or team.in_step:
            try:
                found = work(group[team.rank if has_one else 0])
            except LrftError as error:
                fault = error  # told before anybody goes on
                continue
            mine += [found] if has_one else []
        done += sum(rows(item) for item in group)
        watch.report(done)
    _agree(team, watch, done, fault, stop=False)
    together = (found for row in zip_longest(*team.gather(mine), fillvalue=GAP) for found in row)
    return [found for found in together if found is not GAP]  # type: ignore[misc]


def _rounds(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def _agree(team: Team, watch: Watch, done: int, fault: LrftError | None, stop: bool) -> None:
    """Go on only where all processes can.

    Raises:
        EvaluationStopped: one was asked to stop.
        LrftError: the first that a process has met.
    """
    failed = fault is not None and not isinstance(fault, EvaluationStopped)
    status = team.largest(FAILED if failed else STOPPED if stop or fault is not None else 0)
    if status == STOPPED:
        raise EvaluationStopped(done, watch.total)
    if status == FAILED:
        mine = None if fault is None or not failed else (type(fault), str(fault))
        kind, message = next(told for told in team.gather(mine) if told is not None)
        raise (fault if failed and fault is not None else kind(message))
