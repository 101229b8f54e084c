"""The low-rank product beside a frozen matmul: one autograd node, nothing kept but x and the rank-wide x A^T."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.frozen import FrozenLinear


def low_rank_linear(
    x: Tensor,
    base: FrozenLinear | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    *,
    dropped: Tensor | None = None,
    dtype: torch.dtype | None = None,
    bias: bool = True,
) -> Tensor:
    """base(x) + scaling (x A^T) B^T, (..., in) -> (..., out) in the dtype of x.

    Args:
        base: the frozen map; None for the low-rank term alone.
        A: (rank, in) and B: (out, rank), float32 masters, cast to `dtype` (default: that of x) at the point of use.
        dropped: what the low-rank path sees instead of x, when dropout is active.
        bias: whether the base's bias is part of the result.
    """
    dtype = dtype or x.dtype
    if base is not None and dropped is None and dtype == x.dtype:
        return _AdaptedMatmul.apply(x, A, B, base, scaling, bias)
    seen = (x if dropped is None else dropped).to(dtype)
    update = (scaling * F.linear(F.linear(seen, A.to(dtype)), B.to(dtype))).to(x.dtype)
    if base is None:
        return update
    y = base(x)
    return y + update if bias or base.bias is None else y - base.bias + update


class _AdaptedMatmul(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with the scale folded into the matmuls.

    Saves x and t = x A^T; decodes W again in the backward pass. With P = s dy B:
    dx = dy W + P A, dA = P^T x, dB = s dy^T t. x is not kept when A does not train.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, base: FrozenLinear, scaling: float, bias: bool
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a, b = A.to(x.dtype), B.to(x.dtype)
        t = flat @ a.mT
        y = F.linear(flat, base.weight(), base.bias if bias else None)
        y.addmm_(t, b.mT, alpha=scaling)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(flat if ctx.needs_input_grad[1] else flat.new_empty(0), t, A, B)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, t, A, B = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        a, b = A.to(dy.dtype), B.to(dy.dtype)
        p = (dy @ b).mul_(ctx.scaling)
        dx = dA = dB = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ ctx.base.weight()).addmm_(p, a).view(*grads[0].shape[:-1], a.shape[1])
        if ctx.needs_input_grad[1]:
            dA = (p.mT @ x).to(A.dtype)
        if ctx.needs_input_grad[2]:
            dB = (dy.mT @ t).to(B.dtype).mul_(ctx.scaling)
        return dx, dA, dB, None, None, None
