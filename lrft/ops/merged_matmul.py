"""The map of an adapter whose weight is formed whole, as one that is rounded has to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from lrft.ops.formula import pulled
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul


class Stored(Protocol):
    """A weight that can be decoded, and a bias."""

    @property
    def bias(self) -> Tensor | None:
        """Of shape (out,), or None."""

    def weight(self) -> Tensor:
        """The dense weight (out, in)."""


Merged = Callable[[Tensor], Tensor]
"""W (out, in) in float32 -> the weight that x meets, (out, in) in float32."""


def merged_linear(x: Tensor, base: Stored, merged: Merged, parameters: Iterable[nn.Parameter]) -> Tensor:
    """X merged(W)^T + b, (..., in) -> (..., out) in the dtype of x.

    The weight is formed in the forward pass and again in the backward pass, so that of all that is as large as a
    weight nothing is kept between the two.

    Args:
        parameters: what `merged` is a function of beside W; those that train get their gradients.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    y: Tensor = _MergedMatmul.apply(x, base, merged, *trained)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    base: Stored
    merged: Merged


class _MergedMatmul(torch.autograd.Function):
    """Saves x. With W' = merged(W), G = dy^T x: dx = dy W', and dp = the derivative of <G, W'> for every parameter."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, base: Stored, merged: Merged, *trained: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.base, ctx.merged = base, merged
        ctx.save_for_backward(flat, *trained)
        y = linear(flat, merged(base.weight().float()).to(x.dtype), base.bias)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *trained = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        with torch.enable_grad():
            weight = ctx.merged(ctx.base.weight().float())
        dx = None
        if ctx.needs_input_grad[0]:
            dx = matmul(dy, weight.detach().to(dy.dtype)).view(*grads[0].shape[:-1], weight.shape[1])
        return dx, None, None, *pulled(weight, trained, dy, x)
