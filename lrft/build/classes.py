"""Rows with a few answers between them as a classification: what comes before the answer, and which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrft.build.text import Text
from lrft.data.encoded import Encoded
from lrft.data.rows import Rows
from lrft.registry.errors import DataError

MOST = 64  # classes


@dataclass(frozen=True)
class Classes:
    """Rows as a classification.

    Attributes:
        rows: those that have an answer and fit whole, in their order.
        prompts: of each, the tokens that its answer follows; of rows with labels, the whole text.
        whole: of each, all of its tokens.
        gold: of each, the place of its class in `names`.
        names: the answers, or the labels, sorted.
    """

    rows: Rows
    prompts: Sequence[Encoded]
    whole: Sequence[Encoded]
    gold: Sequence[int]
    names: tuple[str, ...]


def read_classes(
    text: Text, rows: Rows, encoded: Sequence[Encoded], what: str, names: Sequence[str] = ()
) -> Classes:
    """The rows by their answers.

    Args:
        encoded: one for each of `rows`; those that are cut, left out or without a target are passed over.
        what: the rows in an error, as `data.train`.
        names: the classes that there are; by default the answers that occur.

    Raises:
        DataError: the rows have one answer all of them, too many different ones, or one that is not among `names`.
    """
    whole = [k for k, row in enumerate(encoded) if row.targets and not row.dropped and not row.truncated]
    chosen = rows.chosen(whole)
    if any(encoded[k].label is not None for k in whole):
        labels = text.renderer.labels
        if len(labels) < 2:
            raise DataError(f"{what}: the rows hold one number each, and not one of several classes")
        found = [labels[int(encoded[k].label or 0)] for k in whole]
        prompts = [encoded[k] for k in whole]
    else:
        questions = [text.renderer.question(row) for row in chosen]
        empty = next((k for k, one in enumerate(questions) if not one.prompt or not one.reference), None)
        if empty is not None:
            raise DataError(
                f"{chosen.where(empty)}: the row has no prompt or no answer, so it is in no class"
            )
        found = [one.reference.strip() for one in questions]
        prompts = [
            Encoded(one.prompt, [False] * len(one.prompt), length=len(one.prompt), features=one.features)
            for one in questions
        ]
    known = tuple(names) or _named(found, what)
    place = {name: k for k, name in enumerate(known)}
    strange = next((k for k, name in enumerate(found) if name not in place), None)
    if strange is not None:
        raise DataError(
            f"{chosen.where(strange)}: its answer {found[strange]!r} is that of no training row that is looked at"
        )
    return Classes(chosen, prompts, [encoded[k] for k in whole], [place[name] for name in found], known)


def _named(found: Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(sorted(set(found)))
    if len(names) < 2:
        said = f"one answer all of them ({names[0]!r})" if names else "nothing to answer"
        raise DataError(f"{what}: the rows have {said}, so there are no classes to tell apart")
    if len(names) > min(MOST, len(found) // 2):
        raise DataError(
            f"{what}: {len(found)} rows have {len(names)} different answers, which are no classes; there may be "
            f"{MOST}, and two rows of each on average"
        )
    return names
