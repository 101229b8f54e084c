"""A document of a micro-batch by itself, and what every document counts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lrft.core.batch import Batch


def document_of(batch: Batch, index: int) -> Batch:
    """The micro-batch that is one document of a batch, in which every row of the data has one."""
    row, start, end = batch.documents[index]
    first = row * batch.input_ids.shape[1] + start
    inside = ((batch.supervised >= first) & (batch.supervised < first + end - start)).nonzero()[:, 0]
    return replace(
        batch,
        input_ids=batch.input_ids[row : row + 1, start:end],
        position_ids=batch.position_ids[row : row + 1, start:end],
        documents=((0, 0, end - start),),
        supervised=batch.supervised.index_select(0, inside) - first,
        targets=batch.targets.index_select(0, inside),
        examples=batch.examples[index : index + 1],
        features=batch.features[index : index + 1],
        wanted=batch.wanted[index : index + 1],
    )


def scale_by_document(batch: Batch, weights: Tensor) -> Tensor:
    """What every target counts where a document's counts its weight over how many it has, (documents,) -> (N,)."""
    ones = torch.ones(len(batch.targets), device=batch.targets.device)
    counts = batch.document_sums(ones).long()
    each = weights.to(counts.device) / counts.clamp(min=1)
    return each.repeat_interleave(counts, output_size=len(ones))
