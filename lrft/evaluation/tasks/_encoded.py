"""Rows that are scored as they are trained on: encoded, and which of them have anything to score."""

from __future__ import annotations

from collections.abc import Sequence

from lrft.data.encode import encode_all, encode_each
from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.rows import Rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.batching import scoring
from lrft.evaluation.divide import divided
from lrft.evaluation.subject import Subject
from lrft.registry.errors import DataError


def check_form(renderer: Renderer, trait: str, what: str, remedy: str) -> None:
    """Refuse rows of a format without a trait.

    Args:
        what: such rows are, as `pairs`.
        remedy: the format that has it.

    Raises:
        DataError: the format of the rows has it not.
    """
    if trait not in renderer.format.provides:
        raise DataError(
            f"the rows of the {renderer.format.name} format are no {what}; write format: {remedy}"
        )


def encode_texts(
    subject: Subject, rows: Rows, renderer: Renderer, what: str
) -> tuple[Sequence[Encoded], list[int]]:
    """Every row of one or several texts, and the indices of those with something to learn.

    Args:
        what: of a row to score, as `is a pair`.

    Raises:
        DataError: a row cannot be encoded, or is longer than the model can take; or none is left to score.
    """
    encoded = encode_all(rows, renderer)
    longest = [max(map(len, (text.input_ids for text in row.documents()))) for row in encoded]
    subject.check_lengths(longest, rows.where)
    kept = [index for index, row in enumerate(encoded) if row.targets]
    if not kept:
        raise DataError(f"none of the {len(rows)} rows {what} to score; check data.format and too_long")
    return encoded, kept


def shortened(encoded: Sequence[Encoded], kept: Sequence[int]) -> dict[str, float]:
    """How many rows were left out, and how many are scored cut."""
    return {"left_out": len(encoded) - len(kept), "truncated": sum(row.truncated for row in encoded)}


def scores_of(
    subject: Subject, encoded: Sequence[Encoded], name: str
) -> list[tuple[tuple[int, ...], list[list[float]]]]:
    """Of every batch which rows are in it, and the scores (documents, labels) of their texts, by the task `name`."""
    batches = list(eval_batches(encoded, subject.batch_tokens, subject.pad_id))
    with scoring(subject.model):
        found = divided(
            batches,
            lambda batch: subject.model.scores(batch.to(subject.model.device)).tolist(),
            subject.watch(name, len(encoded)),
            lambda batch: len(batch.examples),
            subject.team,
        )
    return [(batch.examples, scores) for batch, scores in zip(batches, found, strict=True)]


def encode_rows(subject: Subject, rows: Rows, renderer: Renderer) -> tuple[Sequence[Encoded], Sequence[int]]:
    """Every row as it is trained on, a long one as several where it goes on, and for each which of the rows it is.

    Raises:
        DataError: a row cannot be encoded, or is longer than the model can take.
    """
    encoded, of = encode_each(rows, renderer)
    subject.check_lengths([len(row.input_ids) for row in encoded], lambda index: rows.where(of[index]))
    return encoded, of
