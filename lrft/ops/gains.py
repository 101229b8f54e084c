"""Gains on activations: one node that keeps what it multiplied, in its own precision, and no product."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.compiled import fusible
from lrft.ops.linalg import Context
from lrft.ops.native import halves, kernels_for


def scaled(x: Tensor, gains: Tensor, shift: Tensor | None = None) -> Tensor:
    """X * gains + shift over the last axis, (..., d) -> (..., d) in the dtype of x; computed in that of the gains.

    Args:
        gains: (d,), float32 as masters are, so that a gain near 1 is not rounded to 1 in half precision.
        shift: (d,) or None.
    """
    y: Tensor = _Scaled.apply(x, gains, shift)  # type: ignore[no-untyped-call]
    return y


def scale_columns(u: Tensor, gain: Tensor) -> Tensor:
    """U * gain for u (tokens, out) and gain (out,) float32, which is never rounded: 1.001 is 1 in bfloat16.

    In half precision the gain is a sum of two such numbers: a third of the time of a product of two precisions.
    """
    high = gain.to(u.dtype)
    y = u * high
    return y if high.dtype == gain.dtype else y.addcmul_(u, (gain - high).to(u.dtype))


def column_dots(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the tokens of a * b, two (tokens, out) -> (out,) float32."""
    if (kernels := kernels_for(a, b)) is None:
        return _column_dots(a, b)
    sums = a.new_empty(a.shape[1], dtype=torch.float32)
    kernels("column_dots", a.contiguous(), b.contiguous(), sums, halves(a), *a.shape)
    return sums


@fusible
def _column_dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0, dtype=torch.float32)


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


def turned(y: Tensor, along: Tensor, across: Tensor, half: int) -> Tensor:
    """Y * along + swap(y) * across over the last axis, (..., d) -> (..., d) in the dtype of y.

    swap takes (a, b) to (-b, a) for the two halves a and b, `half` entries each, of every group of 2 `half` entries.

    Args:
        along, across: (d,), in the precision that is computed in.
    """
    turned_y: Tensor = _Turned.apply(y, along, across, half)  # type: ignore[no-untyped-call]
    return turned_y


def _swap(y: Tensor, half: int) -> Tensor:
    a, b = y.unflatten(-1, (-1, 2, half)).unbind(-2)
    return torch.stack((-b, a), dim=-2).flatten(-3)


class _Half(Context):
    half: int


class _Turned(torch.autograd.Function):
    """Saves y and the two vectors; the transpose of swap is -swap."""

    @staticmethod
    def forward(ctx: _Half, y: Tensor, along: Tensor, across: Tensor, half: int) -> Tensor:
        ctx.half = half
        ctx.save_for_backward(y, along, across)
        return torch.addcmul(y * along, _swap(y, half).to(across.dtype), across).to(y.dtype)

    @staticmethod
    def backward(ctx: _Half, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, along, across = ctx.saved_tensors
        dy = grads[0].to(along.dtype)
        dx = (dy * along - _swap(dy * across, ctx.half)).to(y.dtype) if ctx.needs_input_grad[0] else None
        return dx, over_tokens(dy * y), over_tokens(dy * _swap(y, ctx.half)), None
