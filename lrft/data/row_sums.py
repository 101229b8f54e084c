"""The identity of encoded rows: one number over all tokens and masks, and digits that say which rows changed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from itertools import islice

from lrft.data.encoded import Encoded
from lrft.registry.json import Json

BLOCKS = 128  # at most, in which rows are told apart; of fewer rows each is a block of its own
DIGITS = 8  # of a block's sum


def record_rows(encoded: Sequence[Encoded]) -> dict[str, Json]:
    """How many rows, tokens and targets there are, sha256 over all of them in order, and the digits of their blocks.

    What is hashed of a row is what a step sees of it: token ids, which of them are learnt, where its documents begin,
    its label, and whether it goes on in another window.
    """
    whole = hashlib.sha256()
    digits = []
    tokens = targets = 0
    size, rows = block_size(len(encoded)), iter(encoded)
    for _ in range(0, len(encoded), size):
        block = hashlib.sha256()
        for row in islice(rows, size):
            block.update(_bytes(row))
            tokens, targets = tokens + len(row.input_ids), targets + row.targets
        whole.update(block.digest())
        digits.append(block.hexdigest()[:DIGITS])
    return {
        "sha256": whole.hexdigest(),
        "rows": len(encoded),
        "tokens": tokens,
        "targets": targets,
        "digits": "".join(digits),
    }


def tokens_sum(ids: Sequence[int]) -> bytes:
    """What tells rows of other tokens apart, in sixteen bytes."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()


def block_size(rows: int) -> int:
    """Rows of a block."""
    return max(1, -(-rows // BLOCKS))


def first_changed(rows: int, before: str, now: str) -> tuple[int, int] | None:
    """First and last of the rows, from 0, that the first block in which two records of so many rows differ holds."""
    size = block_size(rows)
    for number in range(max(len(before), len(now)) // DIGITS):
        piece = slice(number * DIGITS, (number + 1) * DIGITS)
        if before[piece] != now[piece]:
            return number * size, min(rows, (number + 1) * size) - 1
    return None


def _bytes(row: Encoded) -> bytes:
    shape = (len(row.input_ids), row.parts, row.label, row.dropped, row.goes_on, row.read_again)
    return repr(shape).encode() + array("q", row.input_ids).tobytes() + bytes(row.supervised)
