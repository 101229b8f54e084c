"""Where documents lie in the packed rows of the first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from lrft.data.rows import Rows
from lrft.data.show import part_names
from lrft.data.steps import TrainData


class PlacedDocument(TypedDict):
    """A document in a packed row: the tokens from `start` to before `end`."""

    start: int
    end: int
    where: str
    learnt: int
    answer: NotRequired[str]


class PackedRow(TypedDict):
    """A packed row: in which micro-batch of which step of the first epoch it is, counted from 1."""

    step: int
    micro_batch: int
    row: int
    tokens: int
    documents: list[PlacedDocument]


class Packed(TypedDict):
    """How the rows of a recipe are packed for the first epoch of one process."""

    rows: int
    capacity: int
    examples: int
    full: float
    first: list[PackedRow]


def packed_rows(data: TrainData, rows: Rows, count: int) -> Packed:
    """The layout of the first `count` rows of the first epoch; `rows` are those of `data.encoded`."""
    placed = [
        (k, number, row)
        for k, micro_batch in enumerate(data.layout(0))
        for number, row in enumerate(micro_batch)
    ]
    used = sum(data.lengths[index] for _, _, row in placed for index in row)
    return {
        "rows": len(placed),
        "capacity": data.max_length,
        "examples": sum(len(row) for _, _, row in placed),
        "full": used / (len(placed) * data.max_length),
        "first": [
            {
                "step": data.place_of(k)[0] + 1,
                "micro_batch": data.place_of(k)[1] + 1,
                "row": number + 1,
                "tokens": sum(data.lengths[index] for index in row),
                "documents": _documents(data, rows, row),
            }
            for k, number, row in placed[:count]
        ],
    }


def _documents(data: TrainData, rows: Rows, row: Sequence[int]) -> list[PlacedDocument]:
    found: list[PlacedDocument] = []
    end = 0
    for index in row:
        for number, document in enumerate(data.encoded[index].documents()):
            start, end = end, end + len(document.input_ids)
            placed: PlacedDocument = {
                "start": start,
                "end": end,
                "where": rows.where(index),
                "learnt": document.targets,
            }
            if data.encoded[index].parts:
                placed["answer"] = part_names(data.encoded[index])[number]
            found.append(placed)
    return found
