"""Rows of both splits that say nearly the same, and held-out rows whose question a training row asks too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from lrft.core import stop
from lrft.data.encoded import Encoded
from lrft.data.example import Example, Message
from lrft.data.formats._format import Format
from lrft.data.near import Pair, Texts, words
from lrft.data.reached import MEANT, leaves
from lrft.data.row_sums import tokens_sum
from lrft.data.rows import Rows
from lrft.registry.json import Json

SHOWN = 3  # places in a line


@dataclass(frozen=True)
class Split:
    """The rows of one split with their tokens, in the same order."""

    rows: Rows
    encoded: Sequence[Encoded]

    def usable(self) -> Iterator[int]:
        """Indices of the rows that are not left out; of a document in several windows that of the first."""
        last = ""
        for index, row in enumerate(self.encoded):
            if not row.dropped and (where := self.rows.where(index)) != last:
                last = where
                yield index


@dataclass(frozen=True)
class Alike:
    """What was found alike, each with where it stands. Equal rows, which the gate counts, are not repeated.

    Attributes:
        near: training rows and the earlier training rows that they nearly repeat, with the share in common.
        held_out: the same of held-out rows and training rows.
        asked: held-out rows, not among those, whose question is word for word that of a training row.
        returns: rows with the line ends of Windows in their texts, which are learnt like any other character.
    """

    near: tuple[tuple[str, str, float], ...]
    held_out: tuple[tuple[str, str, float], ...]
    asked: tuple[tuple[str, str], ...]
    returns: tuple[str, ...] = ()

    def record(self) -> dict[str, Json]:
        """Plain values: all of them, since they are what a script would remove."""

        def pairs(found: Sequence[tuple[str, str, float]]) -> list[Json]:
            return [{"row": row, "like": like, "share": round(share, 3)} for row, like, share in found]

        return {
            "near_duplicates": pairs(self.near),
            "held_out_near_training": pairs(self.held_out),
            "held_out_asked_in_training": [{"row": row, "like": like} for row, like in self.asked],
            "carriage_returns": [*self.returns],
        }

    def facts(self) -> list[tuple[str, str]]:
        """A line for each kind that occurs."""
        lines = []
        for label, found in (
            ("near duplicates", self.near),
            ("held-out rows near a training row", self.held_out),
        ):
            if found:
                first = ", ".join(f"{row} like {like}, {share:.0%}" for row, like, share in found[:SHOWN])
                lines.append((label, f"{len(found):,} (first: {first})"))
        if self.asked:
            first = ", ".join(f"{row} like {like}" for row, like in self.asked[:SHOWN])
            lines.append(("held-out questions asked in training", f"{len(self.asked):,} (first: {first})"))
        if self.returns:
            first = ", ".join(self.returns[:SHOWN])
            what = (
                f"{len(self.returns):,} rows (first: {first}), learnt as they are; save with line feeds alone"
            )
            lines.append(("line ends of Windows in texts", what))
        return lines


def compare(
    form: Format, train: Split, held_out: Split | None, progress: Callable[[int, int], None]
) -> Alike:
    """Look for what is alike; `progress` hears (rows read, rows in all)."""
    splits = [train] if held_out is None else [train, held_out]
    rows = [(split, index) for split in splits for index in split.usable()]
    texts, questions = Texts(), dict[tuple[str, ...], int]()
    asked: dict[int, int] = {}
    returns: list[str] = []
    for number, (split, index) in enumerate(rows):
        stop.poll()
        example = form.completed(split.rows[index])
        said = list(texts_of(example))
        texts.add(said)
        if any("\r\n" in text for text in said):
            returns.append(split.rows.where(index))
        question = tuple(chain.from_iterable(map(words, question_of(example))))
        if question and split is train:
            questions.setdefault(question, number)
        elif question in questions:
            asked[number] = questions[question]
        progress(number + 1, len(rows))
    equal = _equal(rows)
    pairs = [pair for pair in texts.near() if pair.later not in equal]
    found = _placed(pairs, {k: v for k, v in asked.items() if k not in equal}, rows, train)
    return replace(found, returns=tuple(returns))


def _placed(pairs: list[Pair], asked: dict[int, int], rows: list[tuple[Split, int]], train: Split) -> Alike:
    """What was found, by where it stands."""

    def where(number: int) -> str:
        split, index = rows[number]
        return split.rows.where(index)

    def within(train_too: bool) -> tuple[tuple[str, str, float], ...]:
        # The earlier one of a pair of held-out rows is no training row; the gate's own count tells of equal ones.
        chosen = [
            p for p in pairs if rows[p.earlier][0] is train and (rows[p.later][0] is train) == train_too
        ]
        return tuple((where(p.later), where(p.earlier), p.share) for p in chosen)

    near = {pair.later for pair in pairs if rows[pair.earlier][0] is train}
    return Alike(
        within(True), within(False), tuple((where(k), where(v)) for k, v in asked.items() if k not in near)
    )


def _equal(rows: list[tuple[Split, int]]) -> set[int]:
    """Rows whose tokens are those of an earlier one."""
    seen: set[bytes] = set()
    found = set()
    for number, (split, index) in enumerate(rows):
        ids = tokens_sum(split.encoded[index].input_ids)
        if ids in seen:
            found.add(number)
        seen.add(ids)
    return found


def texts_of(example: Example) -> Iterator[str]:
    """The texts of a row: its prompt, and every answer or passage."""
    if not example.messages:
        yield example.prompt
    yield from (passage.prompt for passage in example.passages)
    for answer in example.answers():
        yield answer.completion
    yield from _of_messages(example.messages)
    if example.rejected is not None:
        yield from _of_messages(example.rejected.messages[-1:])


def question_of(example: Example) -> Iterator[str]:
    """The texts before the last learnt answer."""
    if example.messages and example.learnt:
        return _of_messages(example.messages[: example.learnt[-1]])
    return iter([example.prompt] if example.prompt else [])


def _of_messages(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        for name in ("content", *(name for name in MEANT if name in message)):
            yield from leaves(message[name])
