"""Training rows that are left out because another row says the same: an earlier one of them, or a held-out one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain

from lrft.core import stop
from lrft.data.alike import question_of, texts_of
from lrft.data.example import Example
from lrft.data.formats._format import Format
from lrft.data.near import Texts, words
from lrft.data.rows import Rows, placed
from lrft.registry.errors import DataError
from lrft.registry.json import Json, to_list, to_section

SHOWN = 3  # places in a line
LABELS = {
    "equal": "rows left out, equal to an earlier one",
    "near": "rows left out, near an earlier one",
    "held_out": "rows left out, near a held-out one",
    "asked": "rows left out, asked in held-out rows",
}

Like = tuple[str, str, float]
"""Where a row is that is left out, where the one is that it is like, and what they share."""


@dataclass(frozen=True)
class Removal:
    """What was left out of the training rows, each row under the first of these that is true of it.

    Attributes:
        rows: how many there were.
        equal, near: by `data.dedup`.
        held_out, asked: by `data.drop_overlap`; near a held-out row, or with its question.
    """

    rows: int
    equal: tuple[Like, ...] = ()
    near: tuple[Like, ...] = ()
    held_out: tuple[Like, ...] = ()
    asked: tuple[Like, ...] = ()

    def record(self) -> dict[str, Json]:
        """Plain values: counts, and the first rows of each kind."""
        found: dict[str, Json] = {"rows": self.rows}
        first: dict[str, Json] = {}
        for kind in LABELS:
            removed: tuple[Like, ...] = getattr(self, kind)
            found[kind] = len(removed)
            first[kind] = [
                {"row": row, "like": like, "share": round(share, 3)} for row, like, share in removed[:SHOWN]
            ]
        return {**found, "first": first}


def removal_facts(record: Mapping[str, Json]) -> list[tuple[str, str]]:
    """What `Removal.record` says, a line a kind that occurs."""
    lines = []
    for kind, label in LABELS.items():
        first = []
        for one in map(to_section, to_list(to_section(record["first"])[kind])):
            first.append(f"{one['row']} like {one['like']}")
        if first:
            lines.append((label, f"{record[kind]:,} of {record['rows']:,} (first: {', '.join(first)})"))
    return lines


def without_repeats(
    rows: Rows, form: Format, columns: Sequence[str], share: float | None
) -> tuple[Rows, Removal]:
    """The rows that no earlier row repeats, in their order; of rows near one another, in a chain too, the first stays.

    Args:
        columns: features of a row; rows that differ in one are not equal.
        share: of what two rows say, from which they are near; None leaves out equal rows alone.
    """
    first, equal, texts = dict[bytes, int](), dict[int, int](), Texts()
    for index, example in enumerate(_examples(rows, form)):
        said = _digest(example, [rows[index].get(column) for column in columns] if columns else [])
        if first.setdefault(said, index) != index:
            equal[index] = first[said]
        texts.add(texts_of(example) if share is not None else ())
    near = {} if share is None else {p.later: p for p in texts.near(share) if p.later not in equal}
    found = Removal(
        len(rows),
        equal=tuple((rows.where(k), rows.where(earlier), 1.0) for k, earlier in equal.items()),
        near=tuple((rows.where(k), rows.where(pair.earlier), pair.share) for k, pair in near.items()),
    )
    return _kept(rows, equal.keys() | near.keys(), "data.dedup"), found


def without_overlap(
    rows: Rows, held_out: Rows, form: Format, share: float, before: Removal | None
) -> tuple[Rows, Removal]:
    """The rows that are near no held-out row, and do not ask what one asks.

    Args:
        before: what was left out until now.
    """
    texts, questions, same = Texts(), dict[tuple[str, ...], int](), dict[bytes, int]()
    for index, example in enumerate(_examples(held_out, form)):
        texts.add(texts_of(example))
        questions.setdefault(_question(example), index)
        same.setdefault(_digest(example, ()), index)
    near, asked = dict[int, tuple[int, float]](), dict[int, int]()
    for index, example in enumerate(_examples(rows, form)):
        texts.add(texts_of(example))
        # What stands in many rows tells none from another, so that equal ones are not always near.
        if (said := _digest(example, ())) in same:
            near[index] = same[said], 1.0
        if (question := _question(example)) and question in questions:
            asked[index] = questions[question]
    first = len(held_out)
    for pair in texts.near(share, before=first):
        near.setdefault(pair.later - first, (pair.earlier, pair.share))
    found = replace(
        before or Removal(len(rows)),
        held_out=tuple((rows.where(k), held_out.where(v), part) for k, (v, part) in sorted(near.items())),
        asked=tuple((rows.where(k), held_out.where(v), 1.0) for k, v in asked.items() if k not in near),
    )
    return _kept(rows, near.keys() | asked.keys(), "data.drop_overlap"), found


def _examples(rows: Rows, form: Format) -> Iterator[Example]:
    for index, row in enumerate(rows):
        stop.poll()
        with placed(rows, index):
            yield form.completed(row)


def _question(example: Example) -> tuple[str, ...]:
    return tuple(chain.from_iterable(map(words, question_of(example))))


def _digest(example: Example, features: Sequence[Json]) -> bytes:
    """Of all that a row trains: another label, margin or rejected answer makes another row."""
    text = json.dumps([asdict(example), features], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _kept(rows: Rows, removed: set[int], key: str) -> Rows:
    """The rows without those.

    Raises:
        DataError: nothing is left of them, or of one of several sources.
    """
    if not removed:
        return rows
    kept = rows.chosen([index for index in range(len(rows)) if index not in removed])
    if not len(kept):
        raise DataError(f"{key}: all {len(rows)} training rows would be left out; remove the key")
    left = {kept.source(index) for index in range(len(kept))}
    for place, name in enumerate(rows.sources):
        if place not in left:
            raise DataError(f"{key}: no row of data.train.{place}, {name}, is left; remove the source")
    return kept
