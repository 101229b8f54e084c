"""An encoded row as text again, cut where the mask changes."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from lrft.data.tokenize import Encoded


def spans(encoded: Encoded, tokenizer: Any) -> list[tuple[str, bool]]:
    """(text, is learnt) of each run of tokens under the same mask; together they are the whole row."""
    found = []
    end, shown = 0, 0
    for learnt, run in groupby(encoded.supervised):
        end += len(list(run))
        # Decoded from the front, since some tokenizers drop the space before the first word they decode.
        text = tokenizer.decode(encoded.input_ids[:end], clean_up_tokenization_spaces=False)
        found.append((text[shown:], learnt))
        shown = len(text)
    return found
