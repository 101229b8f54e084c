"""Products whose outputs come in blocks, each with a small matrix of its own, added into a frozen matmul in place."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul


def blocks_linear(
    x: Tensor, base: FrozenMap, t: Tensor, B: Tensor, scaling: float = 1.0, *, dtype: torch.dtype
) -> Tensor:
    """base(x) + scaling * [t_1 B_1^T, ..., t_k B_k^T], the k blocks of outputs side by side, in the dtype of x.

    Args:
        t: (..., k, r), what goes into each block of outputs, in `dtype`.
        B: (k, out / k, r) float32 masters, cast to `dtype` at the point of use.
    """
    if dtype == x.dtype:
        y: Tensor = _BlocksMatmul.apply(x, t, B, base, scaling)  # type: ignore[no-untyped-call]
        return y
    return base(x) + blocks_update(t, B, scaling).to(x.dtype)


def blocks_update(t: Tensor, B: Tensor, scaling: float = 1.0) -> Tensor:
    """The additive term of `blocks_linear` alone, (..., k, r) and (k, out / k, r) -> (..., out)."""
    return (scaling * torch.einsum("...kr,kor->...ko", t, B.to(t.dtype))).flatten(-2)


class _Kept(Context):
    base: FrozenMap
    scaling: float


class _BlocksMatmul(torch.autograd.Function):
    """The product is added into the base's output in place, block by block; W is decoded again in backward."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, t: Tensor, B: Tensor, base: FrozenMap, scaling: float) -> Tensor:
        y = linear(x.reshape(-1, x.shape[-1]), base.weight(), base.bias)
        flat, b = t.reshape(-1, *t.shape[-2:]), B.to(x.dtype)
        width = B.shape[1]
        for block in range(len(B)):
            part = y[:, block * width : (block + 1) * width]
            part.addmm_(flat[:, block], b[block].mT, alpha=scaling)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(t, B)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        t, B = ctx.saved_tensors
        dy = grads[0].reshape(-1, len(B), B.shape[1])
        dx = matmul(grads[0], ctx.base.weight()) if ctx.needs_input_grad[0] else None
        dt = torch.einsum("nko,kor->nkr", dy, B.to(dy.dtype)).mul_(ctx.scaling).view(t.shape)
        dB = torch.einsum("nko,nkr->kor", dy, t.reshape(-1, *t.shape[-2:])).to(B.dtype).mul_(ctx.scaling)
        return dx, dt, dB, None, None
