"""Which rows are scored together: a function of their lengths alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lrft.core.batch import Batch
from lrft.data.collate import collate, text_keys
from lrft.data.encoded import Encoded


def eval_batches(encoded: Sequence[Encoded], batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Every usable row once, one document a row, longest first so that too large a batch fails at once.

    Of a pair this is the chosen answer, so that a loss on held-out pairs is how likely the preferred answers are. Of
    one that is scored both texts are, one after the other, and of texts to embed all.

    Args:
        batch_tokens: most tokens of a batch, padding included; a longer row is a batch of its own.
    """
    texts = {
        index: row.documents()[: None if row.whole else 1] for index, row in enumerate(encoded) if row.targets
    }
    longest = {index: max(len(text.input_ids) for text in row) for index, row in texts.items()}
    usable = sorted(texts, key=lambda index: (-longest[index], index))
    start = 0
    while start < len(usable):
        first = usable[start]
        size = max(1, batch_tokens // (longest[first] * len(texts[first])))
        chosen = usable[start : start + size]
        rows = [[text] for index in chosen for text in texts[index]]
        batch = collate(rows, pad_id, None, [[index] for index in chosen])
        # Each text is a row of its own, which is still one of those of its example.
        grouped = tuple(text_keys(encoded[index]) for index in chosen if encoded[index].embedded)
        yield replace(batch, texts=grouped) if grouped else batch
        start += size
