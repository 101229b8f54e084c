"""A Kronecker product beside a frozen matmul, by two small products on a reshaped input."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import added, linear


def kron_linear(
    x: Tensor,
    base: FrozenMap | None,
    w1: Tensor,
    down: Tensor | None,
    up: Tensor,
    scale: float = 1.0,
    rows: Tensor | None = None,
) -> Tensor:
    """base(x) + scale * x (w1 kron w2)^T, (..., c d) -> (..., a b) in the dtype of x; the term alone without `base`.

    Args:
        w1: (a, c) float32 master, cast to the dtype of x at the point of use, as the others.
        down: (k, d) and `up`: (b, k), with w2 = up down; None where `up` (b, d) is w2 itself.
        rows: (a b,) what the outputs of the term are multiplied with, a constant; None for 1.
    """
    y: Tensor = _KronMatmul.apply(x, base, scale, rows, w1, down, up)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    base: FrozenMap | None
    scale: float


class _KronMatmul(torch.autograd.Function):
    """With X = x as (c, d), H = X down^T and t = w1 H (a, k), the term is scale * t up^T, flattened.

    Saves x alone of what grows with the tokens; decodes W, and forms H and t, again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        base: FrozenMap | None,
        scale: float,
        rows: Tensor | None,
        w1: Tensor,
        down: Tensor | None,
        up: Tensor,
    ) -> Tensor:
        ctx.base, ctx.scale = base, scale
        flat = x.reshape(-1, x.shape[-1])
        empty = flat.new_empty(0)
        ctx.save_for_backward(flat, w1, empty if down is None else down, up, empty if rows is None else rows)
        t = torch.einsum("tck,ac->tak", _narrow(flat, w1, down), w1.to(x.dtype)).reshape(-1, up.shape[1])
        outputs = len(w1) * len(up)
        if base is not None and rows is None:
            y = linear(flat, base.weight(), base.bias)
            y.view(-1, len(up)).addmm_(t, up.to(x.dtype).mT, alpha=scale)
            return in_shape_of(y, x)
        term = (t @ up.to(x.dtype).mT).view(-1, outputs).mul_(scale)
        if rows is not None:
            term.mul_(rows.to(x.dtype))
        return in_shape_of(term if base is None else linear(flat, base.weight(), base.bias).add_(term), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, down_kept, up, rows = ctx.saved_tensors
        down = down_kept if down_kept.numel() else None
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        moved = (dy if rows.numel() == 0 else dy * rows.to(dy.dtype)).reshape(-1, len(up))
        first = w1.to(dy.dtype)
        narrow = _narrow(x, w1, down)
        t = torch.einsum("tck,ac->tak", narrow, first).reshape(-1, up.shape[1])
        d_up = (moved.mT @ t).float().mul_(ctx.scale)
        dt = (moved @ up.to(dy.dtype)).mul_(ctx.scale).view(len(x), len(w1), -1)
        d_w1 = torch.einsum("tak,tck->ac", dt, narrow).float()
        dX = torch.einsum("tak,ac->tck", dt, first)
        d_down = None
        if down is not None:
            d_down = (dX.flatten(0, 1).mT @ x.reshape(-1, down.shape[1])).float()
            dX = dX @ down.to(dy.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dX.reshape(len(x), -1)
            if ctx.base is not None:
                dx = added(dx, dy, ctx.base.weight())
            dx = dx.view(*grads[0].shape[:-1], x.shape[1])
        return dx, None, None, None, d_w1, d_down, d_up


def _narrow(flat: Tensor, w1: Tensor, down: Tensor | None) -> Tensor:
    """H, (tokens, c, k)."""
    X: Tensor = flat.unflatten(1, (w1.shape[1], -1))
    return X if down is None else X @ down.to(flat.dtype).mT
