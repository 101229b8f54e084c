"""The product with a frozen weight that is decoded where it is used, and not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context
from lrft.ops.products import linear, matmul


def frozen_linear(x: Tensor, layer: FrozenMap) -> Tensor:
    """X W^T + b, (..., in) -> (..., out), of which nothing but the layer itself is kept."""
    y: Tensor = _FrozenMatmul.apply(x, layer, layer.bias)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    layer: FrozenMap


class _FrozenMatmul(torch.autograd.Function):
    """x W^T + b, decoding W again in the backward pass instead of keeping the dense copy alive between the two.

    b may train: db is dy summed over the tokens.

    Measured on CPU, decoding twice costs nothing that can be seen, and it is what makes a 4-bit base 4 bits.
    """

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, layer: FrozenMap, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight(), bias)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (grad,) = grads
        dx = matmul(grad, ctx.layer.weight()) if ctx.needs_input_grad[0] else None
        return dx, None, grad.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[2] else None
