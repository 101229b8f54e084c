"""Gains on activations: one node that keeps what it multiplied, in its own precision, and no product."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.linalg import Context


def scaled(x: Tensor, gains: Tensor, shift: Tensor | None = None) -> Tensor:
    """X * gains + shift over the last axis, (..., d) -> (..., d) in the dtype of x; computed in that of the gains.

    Args:
        gains: (d,), float32 as masters are, so that a gain near 1 is not rounded to 1 in half precision.
        shift: (d,) or None.
    """
    y: Tensor = _Scaled.apply(x, gains, shift)  # type: ignore[no-untyped-call]
    return y


def over_tokens(x: Tensor) -> Tensor:
    """The sum over all but the last axis, (..., d) -> (d,)."""
    return x.reshape(-1, x.shape[-1]).sum(0)


class _Scaled(torch.autograd.Function):
    """Saves x and the gains; of gains that are constant x is not needed."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, gains: Tensor, shift: Tensor | None) -> Tensor:
        ctx.save_for_backward(gains, *([x] if ctx.needs_input_grad[1] else []))
        y = x * gains
        return (y if shift is None else y + shift).to(x.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gains, *kept = ctx.saved_tensors
        (dy,) = grads
        dx = (dy * gains).to(dy.dtype) if ctx.needs_input_grad[0] else None
        dgains = over_tokens(dy * kept[0].to(gains.dtype)) if kept else None
        return dx, dgains, over_tokens(dy.to(gains.dtype)) if ctx.needs_input_grad[2] else None
