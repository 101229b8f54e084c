"""Virtual tokens: positions before every document that no text stands at, for adapters that put something there.

Virtual token k of a document has the token id -1 - k. So packing, masks, positions, caches and generation treat it as
what it is, a token of the document; only the input embedding meets an id that it does not have, and asks here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrft.core.batch import Batch

_ids: Tensor | None = None


def note(ids: Tensor) -> None:
    """Remember the token ids (B, L) of the forward pass that begins."""
    global _ids
    _ids = ids


def virtual_ids(count: int) -> list[int]:
    """The token ids of a document's virtual tokens, in order."""
    return [-1 - k for k in range(count)]


def places(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which tokens of `x` (B, L, ...) are virtual, (B, L, 1) bool, and which one each is, (B, L) from 0 (0 elsewhere).

    None where none is: in a pass without virtual tokens, and in one that continues from a cache.
    """
    if _ids is None or _ids.shape != x.shape[:2]:
        return None
    return (_ids < 0)[..., None], (-1 - _ids).clamp_min(0)


@dataclass(frozen=True)
class Widened:
    """A batch with virtual tokens, and where its own tokens are in it.

    Attributes:
        columns: (B, L) int64, the column of every token of the batch before.
    """

    batch: Batch
    columns: Tensor

    def narrow(self, hidden: Tensor) -> Tensor:
        """The hidden states (B, L', d) of the wider batch at the tokens of the batch before, (B, L, d)."""
        index = self.columns[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)


def widen(batch: Batch, count: int) -> Widened:
    """The batch with `count` virtual tokens before every document; documents of a row stay apart."""
    rows, length = batch.input_ids.shape
    inside: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    for row, start, end in batch.documents:
        inside[row].append((start, end))
    width = length + count * max(map(len, inside))
    source = torch.full(
        (rows, width), length, dtype=torch.int64
    )  # `length` is padding; virtual ones are negative
    columns = torch.zeros(rows, length, dtype=torch.int64)
    documents = []
    for row, spans in enumerate(inside):
        at = 0
        for start, end in sorted(spans):
            source[row, at : at + count] = torch.tensor(virtual_ids(count))
            source[row, at + count : at + count + end - start] = torch.arange(start, end)
            columns[row, start:end] = torch.arange(at + count, at + count + end - start)
            documents.append((row, at, at + count + end - start))
            at += count + end - start
    positions = torch.zeros(rows, width, dtype=torch.int64)
    for row in range(rows):
        spans = [(start, end) for at_row, start, end in documents if at_row == row]
        for start, end in [*spans, (max((end for _, end in spans), default=0), width)]:
            positions[row, start:end] = torch.arange(end - start)
    device = batch.input_ids.device
    source, columns = source.to(device, non_blocking=True), columns.to(device, non_blocking=True)
    padded = torch.cat([batch.input_ids, batch.input_ids.new_zeros(rows, 1)], dim=1)
    ids = torch.where(source < 0, source, padded.gather(1, source.clamp_min(0)))
    wide = replace(
        batch,
        input_ids=ids,
        position_ids=positions.to(device, non_blocking=True),
        documents=tuple(documents),
    )
    return Widened(wide, columns)
