"""Adding to some of the features of every token."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.linalg import Context


def add_at(y: Tensor, added: Tensor, places: Tensor) -> Tensor:
    """Y (..., out) with (..., k) `added` at k places of its last side."""
    total: Tensor = _AddAt.apply(y, added, places)  # type: ignore[no-untyped-call]
    return total


class _AddAt(torch.autograd.Function):
    """torch's own keeps `added` for the backward pass, which needs nothing but the places."""

    @staticmethod
    def forward(ctx: Context, y: Tensor, added: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return y.index_add(-1, places, added)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (places,) = ctx.saved_tensors
        return grads[0], grads[0].index_select(-1, places), None
