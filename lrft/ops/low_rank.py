"""Low-rank products beside a frozen matmul: one autograd node each, nothing kept that can be formed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.ops.linalg import in_shape_of


class FrozenMap(Protocol):
    """What the products here need of a `lrft.core.frozen.FrozenLinear`."""

    bias: Tensor | None

    def weight(self) -> Tensor:
        """The dense weight (out, in), decoded."""

    def __call__(self, x: Tensor) -> Tensor:
        """X W^T + b."""


def low_rank_linear(
    x: Tensor,
    base: FrozenMap | None,
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
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, base: FrozenMap, scaling: float, bias: bool
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a, b = A.to(x.dtype), B.to(x.dtype)
        t = flat @ a.mT
        y = F.linear(flat, base.weight(), base.bias if bias else None)
        y.addmm_(t, b.mT, alpha=scaling)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(flat if ctx.needs_input_grad[1] else flat.new_empty(0), t, A, B)
        return in_shape_of(y, x)

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


def blocks_linear(
    x: Tensor, base: FrozenMap, t: Tensor, B: Tensor, scaling: float = 1.0, *, dtype: torch.dtype
) -> Tensor:
    """base(x) + scaling * [t_1 B_1^T, ..., t_k B_k^T], the k blocks of outputs side by side, in the dtype of x.

    Args:
        t: (..., k, r), what goes into each block of outputs, in `dtype`.
        B: (k, out / k, r) float32 masters, cast to `dtype` at the point of use.
    """
    if dtype == x.dtype:
        return _BlocksMatmul.apply(x, t, B, base, scaling)
    return base(x) + blocks_update(t, B, scaling).to(x.dtype)


def blocks_update(t: Tensor, B: Tensor, scaling: float = 1.0) -> Tensor:
    """The additive term of `blocks_linear` alone, (..., k, r) and (k, out / k, r) -> (..., out)."""
    return (scaling * torch.einsum("...kr,kor->...ko", t, B.to(t.dtype))).flatten(-2)


class _BlocksMatmul(torch.autograd.Function):
    """The product is added into the base's output in place, block by block; W is decoded again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, B: Tensor, base: FrozenMap, scaling: float) -> Tensor:
        y = F.linear(x.reshape(-1, x.shape[-1]), base.weight(), base.bias)
        flat, b = t.reshape(-1, *t.shape[-2:]), B.to(x.dtype)
        width = B.shape[1]
        for block in range(len(B)):
            part = y[:, block * width : (block + 1) * width]
            part.addmm_(flat[:, block], b[block].mT, alpha=scaling)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(t, B)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        t, B = ctx.saved_tensors
        dy = grads[0].reshape(-1, len(B), B.shape[1])
        dx = grads[0] @ ctx.base.weight() if ctx.needs_input_grad[0] else None
        dt = torch.einsum("nko,kor->nkr", dy, B.to(dy.dtype)).mul_(ctx.scaling).view(t.shape)
        dB = torch.einsum("nko,nkr->kor", dy, t.reshape(-1, *t.shape[-2:])).to(B.dtype).mul_(ctx.scaling)
        return dx, dt, dB, None, None


class MadeFactors:
    """Factors A (k, in) and B (out, k) that are a function of few trained tensors and are never kept.

    `made_linear` forms them in the forward pass and again in the backward pass, so that what stays alive in between
    is the trained tensors and activations, however large the factors are.

    Args:
        make: trained tensors -> (A, B) in float32 or in the dtype they are used in.
        pull: (dA or None, dB or None, *trained tensors) -> gradient of every trained tensor.
        trains_A, trains_B: which of the two depend on the trained tensors; the other's gradient is not computed.
    """

    def __init__(
        self,
        make: Callable[..., tuple[Tensor, Tensor]],
        pull: Callable[..., tuple[Tensor, ...]],
        *,
        trains_A: bool,
        trains_B: bool,
    ) -> None:
        self.make, self.pull = make, pull
        self.trains_A, self.trains_B = trains_A, trains_B


def made_linear(
    x: Tensor,
    base: FrozenMap | None,
    factors: MadeFactors,
    trained: tuple[Tensor, ...],
    scaling: float,
    *,
    dropped: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """base(x) + scaling (x A^T) B^T with A and B made of `trained`, (..., in) -> (..., out) in the dtype of x.

    Arguments as of `low_rank_linear`.
    """
    dtype = dtype or x.dtype
    if base is not None and dropped is None and dtype == x.dtype:
        return _MadeMatmul.apply(x, base, factors, scaling, *trained)
    seen = (x if dropped is None else dropped).to(dtype)
    update = _MadeMatmul.apply(seen, None, factors, scaling, *trained).to(x.dtype)
    return update if base is None else base(x) + update


class _MadeMatmul(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with factors that are formed, not kept.

    Saves x where A trains, t = x A^T where B does. With P = s dy B:
    dx = dy W + P A, dA = P^T x, dB = s dy^T t, which `pull` takes to the trained tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: FrozenMap | None, factors: MadeFactors, scaling: float, *trained: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a, b = (part.to(x.dtype) for part in factors.make(*trained))
        t = flat @ a.mT
        if base is None:
            y = (t @ b.mT).mul_(scaling)
        else:
            y = F.linear(flat, base.weight(), base.bias).addmm_(t, b.mT, alpha=scaling)
        ctx.base, ctx.factors, ctx.scaling = base, factors, scaling
        empty = flat.new_empty(0)
        ctx.save_for_backward(flat if factors.trains_A else empty, t if factors.trains_B else empty, *trained)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, t, *trained = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        a, b = (part.to(dy.dtype) for part in ctx.factors.make(*trained))
        p = (dy @ b).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = p @ a if ctx.base is None else (dy @ ctx.base.weight()).addmm_(p, a)
            dx = dx.view(*grads[0].shape[:-1], a.shape[1])
        dA = (p.mT @ x).float() if ctx.factors.trains_A else None
        dB = (dy.mT @ t).float().mul_(ctx.scaling) if ctx.factors.trains_B else None
        return dx, None, None, None, *ctx.factors.pull(dA, dB, *trained)
