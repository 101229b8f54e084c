"""Which rows are scored together: a function of their lengths alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrft.core.batch import Batch
from lrft.data.collate import collate
from lrft.data.encoded import Encoded


def eval_batches(encoded: Sequence[Encoded], batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Every usable row once, one document a row, longest first so that too large a batch fails at once.

    Of a pair this is the chosen answer, so that a loss on held-out pairs is how likely the preferred answers are. Of
    one that is scored both texts are, one after the other.

    Args:
        batch_tokens: most tokens of a batch, padding included; a longer row is a batch of its own.
    """
    texts = {
        index: row.documents()[: None if row.label is not None else 1]
        for index, row in enumerate(encoded)
        if row.targets
    }
    longest = {index: max(len(text.input_ids) for text in row) for index, row in texts.items()}
    usable = sorted(texts, key=lambda index: (-longest[index], index))
    start = 0
    while start < len(usable):
        first = usable[start]
        size = max(1, batch_tokens // (longest[first] * len(texts[first])))
        batch = usable[start : start + size]
        rows = [[text] for index in batch for text in texts[index]]
        yield collate(rows, pad_id, None, [[index] for index in batch])
        start += size
