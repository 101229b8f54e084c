"""A product of which both factors are rounded after a rotation that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.hadamard import Rotation
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul, outer

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rounded:
    """How the factors of x V^T are rounded, each row by itself.

    Attributes:
        inputs: of x R (tokens, in), and `weights`: of V R (out, in); both in float32.
        rotation: R, or None for the identity.
    """

    inputs: Rounding
    weights: Rounding
    rotation: Rotation | None

    def input(self, x: Tensor) -> Tensor:
        """What of x (tokens, in) meets the weight."""
        return self.inputs(self._turned(x.float())).to(x.dtype)

    def weight(self, V: Tensor) -> Tensor:
        """What of V (out, in) meets the input, float32."""
        return self.weights(self._turned(V))

    def back(self, rows: Tensor) -> Tensor:
        """Rows R^T, (..., in)."""
        return rows if self.rotation is None else self.rotation.turn_back(rows)

    def _turned(self, rows: Tensor) -> Tensor:
        return rows if self.rotation is None else self.rotation.turn(rows)


def rotated_linear(x: Tensor, base: FrozenMap, change: Tensor, rounded: Rounded) -> Tensor:
    """Qx(x R) Qw((W + change) R)^T + b, (..., in) -> (..., out) in the dtype of x.

    Args:
        change: (out, in) float32, which may train. Gradients pass both roundings as if there were none.
    """
    y: Tensor = _RotatedMatmul.apply(x, base, change, rounded)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    base: FrozenMap
    rounded: Rounded


class _RotatedMatmul(torch.autograd.Function):
    """Saves x and the change. With u, V the rounded factors: dx = (dy V) R^T, d change = (dy^T u) R^T."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, base: FrozenMap, change: Tensor, rounded: Rounded) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.base, ctx.rounded = base, rounded
        ctx.save_for_backward(flat, change)
        weight = rounded.weight(base.weight().float() + change).to(x.dtype)
        return in_shape_of(linear(rounded.input(flat), weight, base.bias), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, change), rounded = ctx.saved_tensors, ctx.rounded
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx = d_change = None
        if ctx.needs_input_grad[0]:
            weight = rounded.weight(ctx.base.weight().float() + change).to(dy.dtype)
            dx = rounded.back(matmul(dy, weight).float()).to(x.dtype).view(*grads[0].shape[:-1], x.shape[-1])
        if ctx.needs_input_grad[2]:
            d_change = rounded.back(outer(dy, rounded.input(x)).float())
        return dx, None, d_change, None
