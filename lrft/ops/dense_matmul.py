"""Products with dense weights that gradients pass: one weight, or those of groups of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul, outer, working


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b, (..., in) -> (..., out) in the dtype of x, to which the weight (out, in) is rounded.

    Args:
        bias: (out,), a constant.
    """
    y: Tensor = _DenseMatmul.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    precision: torch.dtype  # of the weight


class _DenseMatmul(torch.autograd.Function):
    """Saves x and the rounded weight: dx = dy W, dW = dy^T x."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat, rounded = x.reshape(-1, x.shape[-1]), weight.to(x.dtype)
        ctx.save_for_backward(flat, rounded)
        ctx.precision = weight.dtype
        return in_shape_of(linear(flat, rounded, bias), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx = in_shape_of(matmul(dy, weight), grads[0]) if ctx.needs_input_grad[0] else None
        dW = outer(dy, x).to(ctx.precision) if ctx.needs_input_grad[1] else None
        return dx, dW, None


def grouped_linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Every row of x (rows, in) times W_g^T of its group, (rows, out).

    Args:
        weights: (groups, out, in), of the dtype of x.
        ends: (groups,) int32, after which row each group ends; the last ends with the rows.
    """
    if working(x) == x.dtype:
        return F.grouped_mm(x, weights.mT, offs=ends)
    y: Tensor = _GroupedMatmul.apply(x, weights, ends)  # type: ignore[no-untyped-call]
    return y


class _GroupedMatmul(torch.autograd.Function):
    """One product a group, each in the precision that pays for so many rows."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, ends)
        y = x.new_empty(len(x), weights.shape[1])
        for group, rows in _groups(ends):
            y[rows] = linear(x[rows], weights[group])
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, ends = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dW = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        for group, rows in _groups(ends):
            if dx is not None:
                dx[rows] = matmul(grads[0][rows], weights[group])
            if dW is not None:
                dW[group] = outer(grads[0][rows], x[rows])
        return dx, dW, None


def _groups(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Those that have rows."""
    begin = 0
    for group, end in enumerate(ends.tolist()):
        if end > begin:
            yield group, slice(begin, end)
        begin = end
