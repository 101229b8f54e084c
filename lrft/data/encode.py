"""All rows of a source to token ids, by a `Renderer`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from lrft.core import stop
from lrft.data.drafts import Draft
from lrft.data.encode_apart import Place, entries_apart
from lrft.data.encoded import Encoded
from lrft.data.encoded_rows import EncodedRows
from lrft.data.example import Row
from lrft.data.rows import Rows, placed
from lrft.registry.errors import DataError

if TYPE_CHECKING:
    from lrft.data.tokenize import Renderer

BATCH = 256  # rows; what of them is text at a time is little beside their tokens


def encode_all(
    rows: Rows, renderer: Renderer, progress: Callable[[int, int], None] | None = None
) -> Sequence[Encoded]:
    """Every row in order; `progress` hears (rows done, rows in all).

    Raises:
        DataError: a row cannot be used; the message begins with where it is.
    """
    return encode_each(rows, renderer, progress)[0]


def encode_each(
    rows: Rows,
    renderer: Renderer,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
) -> tuple[EncodedRows, Sequence[int]]:
    """Every row in order, and for each of them which row it is of: a document may be learnt in several windows.

    Args:
        processes: that make tokens of batches of rows; the result is the same with any number.

    Raises:
        DataError: as `encode_all`.
    """
    encoded = EncodedRows()
    of = array("q")
    apart = processes > 1 and len(rows) > BATCH
    place = partial(placed, rows)
    given = (
        entries_apart(rows, renderer, processes, BATCH, place) if apart else entries(rows, renderer, place)
    )
    with closing(given):
        for index, found in enumerate(given):
            stop.poll()
            encoded.extend(found)
            of.extend([index] * len(found))
            if progress is not None:
                progress(index + 1, len(rows))
    return encoded, of


def entries(rows: Rows | Sequence[Row], renderer: Renderer, place: Place) -> Generator[list[Encoded]]:
    """What every row becomes, in order; the first that cannot be used ends it.

    Args:
        place: says where a row is, by its number, that cannot be used.

    Raises:
        DataError: as `place` tells it.
    """
    for index, draft in enumerate(_drafts(rows, renderer, place)):
        with place(index):
            found = renderer.finished(draft)
        yield found


def _drafts(rows: Rows | Sequence[Row], renderer: Renderer, place: Place) -> Iterator[Draft]:
    """Every row as text, a batch of them at a time tokenized in one call; a row that fails does so in its turn."""
    given, left = iter(rows), len(rows)
    for first in range(0, left, BATCH):
        drafts: list[Draft] = []
        failed: DataError | None = None
        for index in range(first, min(first + BATCH, left)):
            try:
                row = next(given)  # of a file that is not held in memory it is read, and may be none
                with place(index):
                    drafts.append(renderer.draft(row))
            except DataError as error:
                failed = error
                break
        renderer.drawing.ready.prepare(drafts)
        yield from drafts
        if failed is not None:
            raise failed
