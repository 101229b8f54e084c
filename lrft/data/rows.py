"""`Rows`: rows in order with the place of each, whether they lie in memory, in files, or are parts of other rows."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Generic, Protocol, TypeVar

from lrft.data.example import OwnRow, Row
from lrft.registry.config import FormatConfig
from lrft.registry.errors import DataError
from lrft.registry.json import Json

T = TypeVar("T")
Held = TypeVar("Held", covariant=True)


class Indexed(Protocol[Held]):
    """What has a length and an item at every index below it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Held: ...


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their files.

    Attributes:
        rows: one dict a row; read when it is asked for where the file is large.
        origin: path of the file, or hub id and split as `id:split`.
        fingerprint: sha256 of the file's bytes or of streamed rows, or the hub data set's own with its revision.
        lines: line of each row, where the file has lines.
        filled: nested objects hold a null for every key that some other row has, as columnar files do.
        places: where each row is, of rows that are parts of others.
        sources: names of the sources that the rows are of; empty where they are of one.
        source_of: place in `sources` of each row's.
        parts: origin and fingerprint of each file or set that they were joined from; empty where it is one.
        format: that of these rows, where their source says its own.
    """

    rows: Indexed[Row]
    origin: str
    fingerprint: str
    lines: Sequence[int] | None = None
    filled: bool = False
    places: Indexed[str] | None = None
    sources: tuple[str, ...] = ()
    source_of: Indexed[int] | None = None
    parts: tuple[tuple[str, str], ...] = ()
    format: FormatConfig | None = None

    @property
    def sums(self) -> dict[str, str]:
        """Fingerprint of every file or set that the rows are of, by its origin."""
        return dict(self.parts or ((self.origin, self.fingerprint),))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        return self._told(_drop_nulls(row) if self.filled else row)

    def __iter__(self) -> Iterator[Row]:
        found = iter(self.rows) if isinstance(self.rows, Iterable) else each(self.rows)
        found = map(_drop_nulls, found) if self.filled else found
        return found if self.format is None else map(self._told, found)

    def _told(self, row: Row) -> Row:
        return row if self.format is None else OwnRow(row, self.format)

    def where(self, index: int) -> str:
        """`file:line`, or `origin row i` (from 0) where there are no lines."""
        if self.places is not None:
            return self.places[index]
        return f"{self.origin} row {index}" if self.lines is None else f"{self.origin}:{self.lines[index]}"

    def chosen(self, indices: Sequence[int]) -> Rows:
        """The rows at these indices, in this order; none of them is read for it."""
        source_of = None if self.source_of is None else array("I", (self.source_of[i] for i in indices))
        return replace(
            self,
            rows=Picked(self, indices),
            filled=False,
            format=None,  # which its rows bring
            lines=None,
            places=Picked(_Places(self), indices),
            source_of=source_of,
        )

    def first(self, count: int | None) -> Rows:
        """The first so many rows, of several sources of each; all of them where that is None."""
        return self if count is None else self.chosen(self.first_indices(count))

    def first_indices(self, count: int | None) -> Sequence[int]:
        """Where the first so many rows are, of several sources of each."""
        if count is None or self.source_of is None:
            return range(len(self) if count is None else min(count, len(self)))
        seen = [0] * len(self.sources)
        kept = array("q")
        for index in range(len(self)):
            source = self.source_of[index]
            if seen[source] < count:
                kept.append(index)
            seen[source] += 1
        return kept

    def source(self, index: int) -> int:
        """Place of a row's source among the sources."""
        return 0 if self.source_of is None else self.source_of[index]


def joined(parts: Sequence[Rows], origin: str, sources: Sequence[str] = ()) -> Rows:
    """All rows of the parts, one part after another.

    Args:
        origin: what they are together.
        sources: a name for each part, where each is a source of its own.
    """
    source_of = None
    if sources:
        source_of = array("I", chain.from_iterable([k] * len(part) for k, part in enumerate(parts)))
    digest = hashlib.sha256("\n".join(part.fingerprint for part in parts).encode()).hexdigest()
    places = Chained([_Places(part) for part in parts])
    files = tuple(chain.from_iterable(part.parts or ((part.origin, part.fingerprint),) for part in parts))
    names = tuple(sources)
    return Rows(
        Chained(parts), origin, digest, places=places, sources=names, source_of=source_of, parts=files
    )


def each(items: Indexed[T]) -> Iterator[T]:
    """Every item in turn."""
    return (items[index] for index in range(len(items)))


@dataclass(frozen=True)
class Picked(Generic[T]):
    """Items of `base` at `indices`."""

    base: Indexed[T]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> T:
        return self.base[self.indices[index]]


class Chained(Generic[T]):
    """The items of several bases, one after another."""

    def __init__(self, bases: Sequence[Indexed[T]]) -> None:
        self.bases = bases
        self.ends = list(accumulate(map(len, bases)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self.ends, index)
        return self.bases[place][index - (self.ends[place - 1] if place else 0)]


@contextmanager
def placed(rows: Rows, index: int) -> Iterator[None]:
    """Say where a row is that cannot be used.

    Raises:
        DataError: what was raised within, with the row's place in front.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{rows.where(index)}: {error}") from error


@dataclass(frozen=True)
class _Places:
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return self.rows.where(index)


def _drop_nulls(row: Row) -> Row:
    """The row without the nulls inside its columns; a column that is null itself stays."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
