"""All rows of a source to token ids, by a `Renderer`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lrft.core import stop
from lrft.data.encoded import Encoded
from lrft.data.rows import Rows
from lrft.registry.errors import DataError

if TYPE_CHECKING:
    from lrft.data.tokenize import Renderer


def encode_all(
    rows: Rows, renderer: Renderer, progress: Callable[[int, int], None] | None = None
) -> list[Encoded]:
    """Every row in order; `progress` hears (rows done, rows in all).

    Raises:
        DataError: a row cannot be used; the message begins with where it is.
    """
    return encode_each(rows, renderer, progress)[0]


def encode_each(
    rows: Rows, renderer: Renderer, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Encoded], Sequence[int]]:
    """Every row in order, and for each of them which row it is of: a document may be learnt in several windows.

    Raises:
        DataError: as `encode_all`.
    """
    encoded: list[Encoded] = []
    of = array("q")
    for index, row in enumerate(rows):
        stop.poll()
        try:
            found = renderer.encodings(row)
        except DataError as error:
            raise DataError(f"{rows.where(index)}: {error}") from error
        encoded += found
        of.extend([index] * len(found))
        if progress is not None:
            progress(index + 1, len(rows))
    return encoded, of
