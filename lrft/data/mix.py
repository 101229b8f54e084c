"""How several sources share an epoch: how many rows of each, and which ones."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import ceil, floor

from lrft.data.order import permutation
from lrft.registry.errors import DataError
from lrft.registry.json import Json

NEARLY = 1e-6  # a row: what shares of a whole number may miss it by


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of one source.

    Attributes:
        name: a short one, unlike the others'.
        weight: share relative to those of the others; None where none is given.
        cap: at most so many rows an epoch.
        repeat: how many times an epoch sees each row, where there are no weights.
    """

    name: str
    weight: float | None = None
    cap: int | None = None
    repeat: float = 1.0


@dataclass(frozen=True)
class Share:
    """One source in an epoch.

    Attributes:
        rows: rows of the source that have something to learn.
        an_epoch: rows of it in every epoch, those that come again counted again.
        share: of the rows of an epoch.
        every: of so many steps one is of the source, where sources take turns; else None.
    """

    name: str
    rows: int
    an_epoch: int
    share: float
    every: int | None = None

    @property
    def repeats(self) -> float:
        """How many times an epoch sees a row, on average."""
        return self.an_epoch / self.rows

    def record(self) -> dict[str, Json]:
        """Plain values."""
        if self.every is not None:
            return {"source": self.name, "rows": self.rows, "one_step_of": self.every}
        return {
            "source": self.name,
            "rows": self.rows,
            "rows_of_an_epoch": self.an_epoch,
            "share": round(self.share, 6),
            "repeats": round(self.repeats, 6),
        }


class Mixture:
    """The rows of every epoch, a pure function of (seed, epoch).

    A source is gone through in passes, each in an order of its own, and an epoch goes on where the one before stopped:
    of a source that gives half of its rows an epoch, two epochs see every row once, and however many rows of it an
    epoch has, no row is seen twice more than another.

    Args:
        sources: what is wanted of each.
        members: of each source, the indices of its rows that have something to learn, in order.
        temperature, rows: of `data.mix`.
        alternating: sources take turns, step by step.

    Raises:
        DataError: a source has no such row, or none of its rows would be seen.
    """

    def __init__(
        self,
        sources: Sequence[Wanted],
        members: Sequence[Sequence[int]],
        temperature: float,
        rows: str | int,
        seed: int,
        alternating: bool = False,
    ) -> None:
        self.members = members
        self.seed = seed
        self.places: Sequence[int] = range(len(members))
        sizes = [len(indices) for indices in members]
        counts = rows_of_an_epoch(sources, sizes, temperature, rows)
        self.shares = [
            Share(source.name, size, count, count / sum(counts), len(sources) if alternating else None)
            for source, size, count in zip(sources, sizes, counts, strict=True)
        ]

    def visits(self, epoch: int) -> list[int]:
        """The rows of an epoch (from 0), source by source; a row that comes again is listed again."""
        found: list[int] = []
        for place in self.places:
            found += self._of_source(place, self.members[place], self.shares[place].an_epoch, epoch)
        return found

    def only(self, place: int) -> Mixture:
        """The same rows of one source, and none of the others."""
        alone = copy(self)
        alone.places = [place]
        return alone

    def _of_source(self, place: int, indices: Sequence[int], count: int, epoch: int) -> list[int]:
        """Rows number epoch * count and following of all passes over a source, sorted."""
        size, first = len(indices), epoch * count
        found: list[int] = []
        for turn in range(first // size, -(-(first + count) // size)):
            begin, end = max(first - turn * size, 0), min(first + count - turn * size, size)
            if end - begin == size:
                found += range(size)
            else:
                found += permutation(size, self.seed, turn, f"source {place}")[begin:end]
        return [indices[k] for k in sorted(found)]


def rows_of_an_epoch(
    sources: Sequence[Wanted], sizes: Sequence[int], temperature: float, rows: str | int
) -> list[int]:
    """How many rows of each source an epoch has.

    Without weights, with temperature 1 and `rows: together`: each row `repeat` times, `cap` at most. Otherwise the rows
    of an epoch are shared out by weight^(1/temperature), the weight being by default what the source would have been,
    and `cap` holds again. Whole rows go to the largest remainders.

    Raises:
        DataError: see `Mixture`.
    """
    for place, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        if not size:
            raise DataError(
                f"data.train.{place}: no row of {source.name} has a token to learn; remove the source"
            )
    plain = [
        _capped(source, max(1, round(size * source.repeat)))
        for source, size in zip(sources, sizes, strict=True)
    ]
    weighed = any(source.weight is not None for source in sources)
    if not weighed and temperature == 1 and rows == "together":
        return plain
    given = [source.weight or float(count) for source, count in zip(sources, plain, strict=True)]
    top = max(given)
    powers = [(weight / top) ** (1 / temperature) for weight in given]
    parts = [power / sum(powers) for power in powers]
    counts = [
        _capped(source, count)
        for source, count in zip(sources, apportioned(_total(rows, plain, parts), parts), strict=True)
    ]
    for place, (source, count) in enumerate(zip(sources, counts, strict=True)):
        if not count:
            raise DataError(
                f"data.train.{place}: of {sum(counts):,} rows of an epoch none is of {source.name}, whose share is "
                f"{parts[place]:.2g}; raise its weight, data.mix.temperature or data.mix.rows, or remove the source"
            )
    return counts


def _capped(source: Wanted, count: int) -> int:
    return count if source.cap is None else min(count, source.cap)


def _total(rows: str | int, sizes: Sequence[int], parts: Sequence[float]) -> int:
    """Rows of an epoch: those of all sources together, until the first is used up, until all are, or a number."""
    if isinstance(rows, int):
        return rows
    lasting = [size / part for size, part in zip(sizes, parts, strict=True)]
    if rows == "first_exhausted":
        return max(1, floor(min(lasting) + NEARLY))
    return ceil(max(lasting) - NEARLY) if rows == "all_exhausted" else sum(sizes)


def apportioned(total: int, parts: Sequence[float]) -> list[int]:
    """`total` in whole parts by these shares: rounded down, and what is left to the largest remainders, in order."""
    exact = [total * part for part in parts]
    counts = [floor(number + NEARLY) for number in exact]
    order = sorted(range(len(parts)), key=lambda k: (counts[k] - exact[k], k))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts
