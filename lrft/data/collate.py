"""Documents to a `Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from lrft.core.batch import Batch
from lrft.data.encoded import Encoded


def collate(
    rows: Sequence[Sequence[Encoded]], pad_id: int, length: int | None, examples: Sequence[Sequence[int]]
) -> Batch:
    """B rows, each of some documents one after another, padded on the right. A pair is two documents, texts several.

    Args:
        rows: what each row holds.
        pad_id: fills the rest of a row.
        length: tokens of a row; by default those of the fullest.
        examples: data-set index of everything in `rows`, in its shape.
    """
    length = _length(rows, length)
    input_ids: list[list[int]] = []
    positions: list[list[int]] = []
    documents: list[tuple[int, int, int]] = []
    supervised: list[int] = []
    targets: list[int] = []
    labels: list[float] = []
    for number, row in enumerate(rows):
        ids: list[int] = []
        places: list[int] = []
        for document in chain.from_iterable(encoded.documents() for encoded in row):
            start = len(ids)
            ids.extend(document.input_ids)
            places.extend(range(len(document.input_ids)))
            documents.append((number, start, len(ids)))
            if document.whole:
                supervised.append(number * length + len(ids) - 1)
                targets.append(0)
                labels += [] if document.label is None else [document.label]
                continue
            # Target k is predicted one position earlier; k = 0 would be predicted from the document before.
            wanted = [k for k, learnt in enumerate(document.supervised) if learnt and k > 0]
            supervised.extend(number * length + start + k - 1 for k in wanted)
            targets.extend(document.input_ids[k] for k in wanted)
        rest = length - len(ids)
        input_ids.append(ids + [pad_id] * rest)
        positions.append([*places, *range(rest)])
    return Batch(
        input_ids=torch.tensor(input_ids, dtype=torch.int64),
        position_ids=torch.tensor(positions, dtype=torch.int64),
        documents=tuple(documents),
        supervised=torch.tensor(supervised, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        examples=tuple(index for row in examples for index in row),
        labels=torch.tensor(labels, dtype=torch.float32) if labels else None,
        features=_features(rows),
        wanted=_wanted(rows),
        texts=tuple(text_keys(one) for row in rows for one in row if one.embedded),
    )


def _length(rows: Sequence[Sequence[Encoded]], length: int | None) -> int:
    longest = max(sum(len(encoded.input_ids) for encoded in row) for row in rows)
    if length is not None and longest > length:
        raise ValueError(f"a row of {longest} tokens does not fit {length}")
    return longest if length is None else length


def _features(rows: Sequence[Sequence[Encoded]]) -> tuple[tuple[str, ...], ...]:
    """Those of every document; empty where no row has any."""
    found = tuple(one.features for row in rows for one in row for _ in one.parts or (0,))
    return found if any(found) else ()


def _wanted(rows: Sequence[Sequence[Encoded]]) -> tuple[bool, ...]:
    """The judgement of every document; empty where the data judge none."""
    return tuple(one.wanted for row in rows for one in row if one.wanted is not None)


def text_keys(encoded: Encoded) -> tuple[int, ...]:
    """A number of 64 bits for each document, the same in every process for the same tokens."""
    return tuple(hash(tuple(document.input_ids)) for document in encoded.documents())
