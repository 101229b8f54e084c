"""A row as text before it is tokens, so that the tokens of many rows are made in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrft.data.chat import ChatTemplate, Span
from lrft.data.encoded import Notes
from lrft.data.example import Example, Row
from lrft.data.features import FeatureColumns, Features
from lrft.data.formats._format import Format
from lrft.data.reached import Reached
from lrft.data.row_size import check_size
from lrft.data.words import ALONE as ALONE
from lrft.data.words import tokens_of_many
from lrft.registry.protocols import Tokenizer


@dataclass(frozen=True)
class Written:
    """A document as text.

    Attributes:
        spans: of its answers, where a chat template wrote it; None of plain text.
    """

    example: Example
    text: str
    spans: Sequence[Span] | None = None

    def asked(self) -> list[str]:
        """The texts whose tokens are wanted of it: the whole, and what stands before every boundary."""
        if self.spans is None:
            bounds = [len(self.example.prompt)] if self.example.prompt else []
        else:
            bounds = [bound for bound, _ in bounds_of(self.spans)]
        return [self.text, *(self.text[:bound] for bound in bounds if bound < len(self.text))]


@dataclass(frozen=True)
class Draft:
    """A row as text: its document or the two of a pair, what of it the text does not hold, and its features.

    `wanted` as in `Example`.
    """

    documents: Sequence[Written]
    notes: Notes
    features: Features = ()
    wanted: bool | None = None


def draft_of(
    row: Row,
    format: Format,
    template: ChatTemplate,
    features: FeatureColumns,
    scored: bool,
    windows: bool = False,
) -> Draft:
    """The row as text.

    Args:
        scored: whole texts are given a label, or of a pair each a score.
        windows: the row is learnt in windows, so that it may be as long as it likes.

    Raises:
        DataError: the format or the chat template cannot use the row.
    """
    example = format.completed(row)
    check_size(example, windows)
    notes, documents = features.read(format.unread(row)), []
    for one in example.texts(scored):
        document, missing = _written(one, template)
        documents.append(document)
        notes = notes.joined(missing)
    return Draft(documents, notes, features.of(row), example.wanted)


def _written(example: Example, template: ChatTemplate) -> tuple[Written, Notes]:
    if not example.messages:
        return Written(example, example.prompt + example.completion), Notes()
    learns = bool(example.learnt) and example.label is None
    example = through_last(example) if learns else example
    text = template.render(example.messages, example.tools)
    spans = template.answers(example, text) if learns else []
    return Written(example, text, spans), Reached(template, example, text, spans).notes()


def through_last(example: Example) -> Example:
    """The conversation through its last learnt answer."""
    return replace(example, messages=example.messages[: example.learnt[-1] + 1])


def bounds_of(spans: Sequence[Span]) -> list[tuple[int, bool]]:
    """Ascending characters where answers, their own words, and what follows them begin, and whether tokens must."""
    firm = {span.start for span in spans} | {span.words for span in spans}
    return [(bound, bound in firm) for bound in sorted(firm | {span.end for span in spans})]


class Ready:
    """A tokenizer that has the tokens of some texts ready; it gives what it would have given without.

    One call for many texts spares what every call costs, and of many tokenizers each word is asked for once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Any = tokenizer
        self._ready: dict[str, list[int]] = {}
        self._many = tokens_of_many(tokenizer)

    def prepare(self, drafts: Iterable[Draft]) -> None:
        """Make the tokens of these rows, and forget those of others."""
        texts = list(dict.fromkeys(text for d in drafts for one in d.documents for text in one.asked()))
        self._ready = dict(zip(texts, self._many(texts), strict=True))

    def __call__(self, text: str, **asked: Any) -> Any:
        ids = self._ready.get(text) if asked == ALONE else None
        return self._tokenizer(text, **asked) if ids is None else {"input_ids": ids}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
