"""What the body of a model is told of the documents of a batch, as each kind of attention takes it."""

from __future__ import annotations

from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.batch import Batch


class Told(TypedDict, total=False):
    """What the body is told of the documents of a batch."""

    position_ids: Tensor
    documents: tuple[tuple[int, int, int], ...]
    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int


def flatten(batch: Batch) -> tuple[Tensor, Tensor, Told]:
    """One row of all documents with their boundaries, which is what variable-length kernels take."""
    rows, length = batch.input_ids.shape
    starts = {row * length for row in range(rows)}
    for row, start, end in batch.documents:
        starts |= {row * length + start, row * length + end}
    edges = sorted(starts | {rows * length})
    longest = max(b - a for a, b in pairwise(edges))
    bounds = torch.tensor(edges, dtype=torch.int32).to(batch.input_ids.device, non_blocking=True)
    extra: Told = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return batch.input_ids.view(1, -1), batch.position_ids.view(1, -1), extra
