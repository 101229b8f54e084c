r"""The tokens of a text that is generated in part: prompts and answers meet at a boundary that no token crosses.

A model is asked with the tokens of the prompt alone, so these are what the answer follows in training too. Where
the tokens of the whole text begin with them, those are taken. Elsewhere ("\n\n" may be one token at the end of a
text and two before a word) the answer is encoded for itself, as it would be in the middle of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrft.registry.errors import DataError
from lrft.registry.protocols import Tokenizer

# Put before a text that goes on from another one, so that a tokenizer does not take it for the beginning of a
# document and write a space in front; the first that stays a token of its own is used.
ANCHORS = ("", "\n", ".", "a", "0")


@dataclass(frozen=True)
class Sewn:
    """Tokens of a whole text.

    Attributes:
        ids: decoding them gives the text.
        at: for each boundary asked for, the index of the first token that begins at or after it.
        apart: a boundary was not one of the tokens of the whole text.
        merged: a token spans a boundary, because nothing else decodes to the text.
    """

    ids: list[int]
    at: list[int]
    apart: bool
    merged: bool


def sewn(tokenizer: Tokenizer, text: str, bounds: Sequence[tuple[int, bool]]) -> Sewn:
    """The tokens of `text`, cut where answers begin.

    Args:
        bounds: ascending characters, each with whether it must be a boundary of tokens; where it need not be, it is
            only looked up.

    Raises:
        DataError: a token spans a boundary, and the tokenizer cannot say where its tokens start.
    """
    piece = Piece(tokenizer, text)
    before: list[int] = []
    start, at, apart, merged = 0, [], False, False
    for bound, firm in bounds:
        lead = piece.encoded(text[start:bound]) if bound < len(text) else piece.ids
        index = len(lead)
        if piece.ids[:index] != lead:
            following = _following(piece, lead, text[bound:]) if firm else None
            if following is None:
                index, spanned = piece.cut(bound - start)
                merged = merged or (firm and spanned)
            else:
                before, start, piece, apart = before + lead, bound, following, True
                index = 0
        at.append(len(before) + index)
    return Sewn(before + piece.ids, at, apart, merged)


class Piece:
    """The tokens of a text that stands alone, or after an anchor; None of them where the anchor joins the text."""

    def __init__(self, tokenizer: Tokenizer, text: str, anchor: str = "") -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.anchor = anchor
        self.front = token_ids(tokenizer, anchor) if anchor else []
        self.ids = self.encoded(text)

    def encoded(self, text: str) -> list[int]:
        """The tokens of `text` in the place of this piece's own.

        An anchor that does not stay a token of its own leaves tokens in front that decode to something else.
        """
        ids = token_ids(self.tokenizer, self.anchor + text)
        return ids[len(self.front) :] if ids[: len(self.front)] == self.front else ids

    def cut(self, bound: int) -> tuple[int, bool]:
        """Index of the first token that begins at character `bound` or later; whether the one before reaches across.

        Raises:
            DataError: the tokenizer cannot say where its tokens start.
        """
        spans = self._spans()
        index = next((k for k, (start, _) in enumerate(spans) if start >= bound), len(spans))
        return index, index > 0 and spans[index - 1][1] > bound

    def _spans(self) -> list[tuple[int, int]]:
        """First character and one past the last, of each token."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise DataError(
                "one token spans the end of the prompt and the answer, and this tokenizer is not a fast one "
                "and cannot say where its tokens start; end the prompt with a line feed, or use a fast one"
            )
        found = self.tokenizer(
            self.anchor + self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans: list[tuple[int, int]] = []
        for start, end in found["offset_mapping"][len(self.front) :]:
            # Some tokenizers leave the space out of a word's span; it is the gap before the word.
            spans.append(
                (min(start - len(self.anchor), spans[-1][1] if spans else 0), end - len(self.anchor))
            )
        return spans


def _following(piece: Piece, lead: list[int], text: str) -> Piece | None:
    """`text` encoded to go on from `lead`, so that the two decode to what `piece` does; None where that cannot be."""
    whole = _decoded(piece.tokenizer, piece.ids)
    for anchor in ANCHORS:
        following = Piece(piece.tokenizer, text, anchor)
        if _decoded(piece.tokenizer, lead + following.ids) == whole:
            return following
    return None


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of `text` alone: nothing is put before or after it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text when it adds special tokens, usually one BOS or nothing."""
    bare = token_ids(tokenizer, "a")
    full = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    found = next((k for k in range(len(full)) if full[k : k + len(bare)] == bare), 0)
    return full[:found]


def leading(ids: list[int], bos: int | None) -> int:
    """How many BOS tokens the row begins with."""
    return next((k for k, token in enumerate(ids) if token != bos), len(ids))
