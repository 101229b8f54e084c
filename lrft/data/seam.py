"""Where in the tokens of a text a leading part of it ends."""

from __future__ import annotations

from typing import Any

from lrft.core.errors import DataError


class Joint:
    """The tokens of a whole text, and where in them a leading part of the text ends."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.ids = token_ids(tokenizer, text)

    def cut(self, leading: str) -> tuple[int, bool]:
        """Index of the first token that begins after `leading`, and whether the one before it reaches across.

        Raises:
            DataError: a token spans the seam, and the tokenizer cannot say where its tokens start.
        """
        if len(leading) == len(self.text):
            return len(self.ids), False
        ids = token_ids(self.tokenizer, leading)
        if self.ids[: len(ids)] == ids:
            return len(ids), False
        spans = self._spans()
        index = next((k for k, (start, _) in enumerate(spans) if start >= len(leading)), len(spans))
        return index, index > 0 and spans[index - 1][1] > len(leading)

    def _spans(self) -> list[tuple[int, int]]:
        """First character and one past the last, of each token."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise DataError(
                "one token spans the end of the prompt and the answer, and this tokenizer is not a fast one "
                "and cannot say where its tokens start; end the prompt with a line feed, or use a fast one"
            )
        found = self.tokenizer(
            self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans: list[tuple[int, int]] = []
        for start, end in found["offset_mapping"]:
            # Some tokenizers leave the space out of a word's span; it is the gap before the word.
            spans.append((min(start, spans[-1][1] if spans else 0), end))
        return spans


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` alone: nothing is put before or after it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
