"""`Encoded`: a row as token ids with the mask of what is learnt, and how a row is made to fit its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Literal, NotRequired, TypedDict

TooLong = Literal["error", "drop", "truncate_left", "truncate_right", "windows"]


@dataclass(frozen=True)
class Notes:
    """What became of the things a row holds on their way into the text.

    Attributes:
        unwritten: columns, and fields of messages, that mean something and that no text holds.
        unread: other columns and fields that no text holds, such as an id.
        left_out: some text of a message is missing from the text, or altered in it.
    """

    unwritten: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    left_out: bool = False

    def joined(self, other: Notes) -> Notes:
        """These and the other ones, each once."""
        return Notes(
            tuple(dict.fromkeys(self.unwritten + other.unwritten)),
            tuple(dict.fromkeys(self.unread + other.unread)),
            self.left_out or other.left_out,
        )


NOTHING = Notes()


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: one document, the two of a pair, or the texts to embed. It is never split over rows.

    Attributes:
        input_ids: the tokens, document after document; empty when dropped.
        supervised: for each token, whether it is a target. Never true for the first of a document. A pair has
            targets in both of its documents or in none.
        parts: tokens of each document; empty for a row that is one document.
        truncated: cut to the longest allowed length.
        dropped: left out because it is too long.
        length: tokens before any cut, of a pair those of both documents.
        extra_bos: beginning-of-text tokens beyond the expected ones; negative when one is missing.
        merged: a token spans the seam of prompt and answer, so the answer's first characters are not learnt.
        apart: prompt and answer are encoded each for itself, since as one text they would share or change tokens.
        notes: what of the row the tokens do not hold.
        goes_on: the document goes on in another window.
        read_again: tokens at its front that windows before it learn.
        label: number of the class of the whole text, or the number that is learnt of it; then it is the one target. Of
            a pair, the margin by which the chosen text is to be scored higher; then each text is a target.
        features: what `data.features` names of the row, as `column=value`.
        wanted: whether the answer is one to give, in data that judges answers.
        embedded: each document is a text to embed: a query, its positive passage, its hard negatives.
    """

    input_ids: list[int]
    supervised: list[bool]
    truncated: bool = False
    dropped: bool = False
    length: int = 0
    extra_bos: int = 0
    merged: bool = False
    parts: tuple[int, ...] = ()
    apart: bool = False
    notes: Notes = NOTHING
    goes_on: bool = False
    read_again: int = 0
    label: float | None = None
    features: tuple[str, ...] = ()
    wanted: bool | None = None
    embedded: bool = False

    @property
    def whole(self) -> bool:
        """Whether each document is read as a whole, from its last token, which then is its one target."""
        return self.embedded or self.label is not None

    @property
    def targets(self) -> int:
        """Number of targets: tokens, or one a document that is read as a whole."""
        return max(1, len(self.parts)) if self.whole else sum(self.supervised)

    def documents(self) -> list[Encoded]:
        """Each document as a row of its own."""
        if not self.parts:
            return [self]
        edges = [0, *accumulate(self.parts)]
        rest = None if self.label is None else 0.0
        labels = [self.label, *(rest for _ in self.parts[1:])]
        return [
            Encoded(
                self.input_ids[start:end],
                self.supervised[start:end],
                length=end - start,
                label=label,
                features=self.features,
                embedded=self.embedded,
            )
            for (start, end), label in zip(pairwise(edges), labels, strict=True)
        ]


class Known:
    """What many rows have alike, kept once."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._notes: dict[Notes, Notes] = {}

    def shared(self, encoded: Encoded) -> Encoded:
        """The row with the numbers and the notes of rows before it, where they are equal."""
        # One int object per distinct id: a list then costs 8 bytes a token instead of 36.
        ids = list(map(self._ids.setdefault, encoded.input_ids, encoded.input_ids))
        return replace(encoded, input_ids=ids, notes=self._notes.setdefault(encoded.notes, encoded.notes))


@dataclass(frozen=True)
class Drawn:
    """A whole document before the length limit; `lead` tokens at the front survive a cut from the left.

    `begin` is the first token of the (last) answer's own words, which nothing of the template stands before; `label`
    and `embedded` as in `Encoded`; `cut`: the text has lost its end already.
    """

    ids: list[int]
    supervised: list[bool]
    lead: int
    extra_bos: int
    merged: bool
    apart: bool
    begin: int
    label: float | None = None
    embedded: bool = False
    cut: bool = False

    def given(self, label: float | None) -> Drawn:
        """The document with a label, which then is all that is learnt of it."""
        return self if label is None else replace(self, label=label, supervised=[False] * len(self.ids))

    def read_whole(self, most: int | None) -> Drawn:
        """The document as a text to embed, of at most so many tokens: a longer one loses its end, but for the last."""
        ids = self.ids if most is None or len(self.ids) <= most else [*self.ids[: most - 1], self.ids[-1]]
        cut = len(ids) < len(self.ids)
        return replace(self, ids=ids, supervised=[False] * len(ids), embedded=True, cut=cut)

    def first(self, length: int) -> Drawn:
        """Cut to its first `length` tokens."""
        return replace(self, ids=self.ids[:length], supervised=self.supervised[:length])

    def without(self, start: int, end: int) -> Drawn:
        """Less the tokens from `start` to `end`; what is then first has nothing to be predicted from."""
        mask = self.supervised[:start] + self.supervised[end:]
        mask[0] = False
        return replace(self, ids=self.ids[:start] + self.ids[end:], supervised=mask)


class Facts(TypedDict):
    """What is told of a row before it is cut."""

    length: int
    extra_bos: int
    merged: bool
    apart: bool
    truncated: NotRequired[bool]


def fitted(documents: Sequence[Drawn], max_length: int, too_long: TooLong) -> Encoded:
    """The row of one document, or of a pair, within `max_length` tokens in all.

    A pair that is cut from the right loses what its longer document has too much. Cut from the left, both lose the
    same tokens of their prompt, so that the two answers still answer one prompt; where the prompt is too short for
    that, the pair is dropped.

    Args:
        too_long: `error` leaves the row whole, for the gate to report; so does `windows`, which are cut elsewhere.
    """
    length = sum(len(document.ids) for document in documents)
    facts: Facts = {
        "length": length,
        "extra_bos": next((d.extra_bos for d in documents if d.extra_bos), 0),
        "merged": any(document.merged for document in documents),
        "apart": any(document.apart for document in documents),
        "truncated": any(document.cut for document in documents),
    }
    if length <= max_length or too_long in ("error", "windows"):
        return _join(documents, facts)
    cut = _cut(documents, length - max_length, max_length, too_long)
    if not cut:
        return replace(Encoded([], [], dropped=True, **facts), truncated=False)
    return _join(cut, {**facts, "truncated": True})


def _cut(documents: Sequence[Drawn], excess: int, max_length: int, too_long: TooLong) -> list[Drawn]:
    """The documents without `excess` tokens; none of them where that is not to be done or cannot be."""
    if too_long == "drop":
        return []
    if too_long == "truncate_right":
        return [
            document.first(room)
            for document, room in zip(documents, _rooms(documents, max_length), strict=True)
        ]
    if len(documents) == 1:
        lead = min(documents[0].lead, max_length - 1)
        return [documents[0].without(lead, lead + excess)]
    lead, each = documents[0].lead, -(-excess // 2)
    # One token of the prompt stays, to predict the answer's first from.
    if lead + each > min(_prompt(document) for document in documents) - (lead == 0):
        return []
    return [document.without(lead, lead + each) for document in documents]


def _rooms(documents: Sequence[Drawn], max_length: int) -> list[int]:
    """Tokens that each document may keep: half of the row, or what the other one leaves."""
    if len(documents) == 1:
        return [max_length]
    first, second = (len(document.ids) for document in documents)
    half = max_length // 2
    return [max(half, max_length - second), max(max_length - half, max_length - first)]


def _prompt(document: Drawn) -> int:
    """Tokens before the first target."""
    return next((k for k, learnt in enumerate(document.supervised) if learnt), len(document.ids))


def _join(documents: Sequence[Drawn], facts: Facts) -> Encoded:
    ids = list(chain.from_iterable(document.ids for document in documents))
    mask = list(chain.from_iterable(document.supervised for document in documents))
    if not all(any(document.supervised) for document in documents):  # nothing to compare
        mask = [False] * len(mask)
    parts = tuple(len(document.ids) for document in documents) if len(documents) > 1 else ()
    first = documents[0]
    return Encoded(ids, mask, parts=parts, label=first.label, embedded=first.embedded, **facts)
