"""Held-out rows taken from the training rows."""

from __future__ import annotations

import hashlib
import json
from array import array

from lrft.data.example import Example
from lrft.data.formats._format import Format
from lrft.data.order import permutation
from lrft.data.rows import Rows, placed
from lrft.registry.errors import DataError


def split_rows(rows: Rows, format: Format, wanted: float, seed: int) -> tuple[Rows, Rows]:
    """The training rows and the held-out rows, both in the order of the file; a pure function of rows and seed.

    Rows that the format makes one example of, whatever else they hold, stay on one side. They are drawn in a random
    order until there are enough; where the next rows belong together and are too many, others are taken.

    Args:
        wanted: number of held-out rows, or below 1 their share.

    Raises:
        DataError: a row cannot be read, or there would be no row on one side.
    """
    alike: dict[bytes, array[int]] = {}
    for index, row in enumerate(rows):
        with placed(rows, index):
            alike.setdefault(_digest(format.example(row)), array("q")).append(index)
    groups = list(alike.values())
    count = int(wanted) if wanted >= 1 else max(1, round(wanted * len(rows)))
    held = bytearray(len(rows))
    left = count
    for place in permutation(len(groups), seed, 0, "split"):
        group = groups[place]
        if len(group) <= left:
            left -= len(group)
            for index in group:
                held[index] = True
    if left == count:
        raise DataError(
            f"data.split: {count} of {len(rows)} rows cannot be held out, since rows that are alike stay on one side "
            f"and there are at least {min(map(len, groups))} of each; raise it, or remove the duplicates"
        )
    if sum(held) == len(rows):
        raise DataError(
            f"data.split: {count} held-out rows of {len(rows)} leave none to train on; {_remedy(rows)}"
        )
    sides = [array("q", (k for k in range(len(rows)) if held[k] == side)) for side in (0, 1)]
    return rows.chosen(sides[0]), rows.chosen(sides[1])


def _remedy(rows: Rows) -> str:
    if len(rows) > 1:
        return "lower it"
    whole = "write row: line beside source for a row a line, or " if ".txt" in rows.where(0) else ""
    return f"there is one row; {whole}name held-out rows as data.eval"


def _digest(example: Example) -> bytes:
    """Of what is rendered; of a pair the chosen answer alone counts, since it is what is scored."""
    said = [example.messages, example.prompt, example.completion, example.tools]
    text = json.dumps(said, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
