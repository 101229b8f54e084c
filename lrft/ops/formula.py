"""The map of an adapter that says nothing but its change of the weight: right for every formula, and lean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul, outer, working

Delta = Callable[[Tensor], Tensor]
"""W (out, in) -> its change (out, in)."""


def formula_linear(x: Tensor, base: FrozenMap, delta: Delta, parameters: Iterable[nn.Parameter]) -> Tensor:
    """X (W + delta(W))^T + b, (..., in) -> (..., out) in the dtype of x.

    The change is formed in the forward pass and again in the backward pass, so that of all that is as large as a
    weight nothing is kept between the two.

    Args:
        parameters: what `delta` is a function of beside W; those that train get their gradients.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    y: Tensor = _FormulaMatmul.apply(x, base, delta, *trained)  # type: ignore[no-untyped-call]
    return y


def is_formed(x: Tensor, out: int) -> bool:
    """Whether to form a change (out, in) that transforms of x (..., in) would give as well, and add it to the weight.

    In float32, where the sum loses nothing and costs no product of its own in the forward pass; and of a weight that is
    small beside the tokens, as a transform of it takes about as long for each of its entries as one of x.
    """
    width = x.shape[-1]
    tokens = x.numel() // width if width else 0
    return working(x) == torch.float32 and out * width <= 2 * tokens * (out + width)


class _Kept(Context):
    base: FrozenMap
    delta: Delta


class _FormulaMatmul(torch.autograd.Function):
    """Saves x. With G = dy^T x: dx = dy (W + delta), and dp = the derivative of <G, delta(W)> for every parameter.

    W and its change are added as products, never as weights: a small change of a weight in half precision would be
    rounded away.
    """

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, base: FrozenMap, delta: Delta, *trained: Tensor) -> Tensor:
        flat, weight = x.reshape(-1, x.shape[-1]), base.weight()
        ctx.base, ctx.delta = base, delta
        ctx.save_for_backward(flat, *trained)
        if working(flat) == torch.float32:  # where both are added without loss
            return in_shape_of(linear(flat, weight.float() + delta(weight.float()), base.bias), x)
        y = F.linear(flat, weight, base.bias)
        y.addmm_(flat, delta(weight.float()).to(x.dtype).mT)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *trained = ctx.saved_tensors
        dy, weight = grads[0].reshape(-1, grads[0].shape[-1]), ctx.base.weight()
        with torch.enable_grad():
            change = ctx.delta(weight.float())
        dx = None
        if ctx.needs_input_grad[0]:
            if working(dy) == torch.float32:
                dx = matmul(dy, weight.float() + change.detach())
            else:
                dx = (dy @ weight).addmm_(dy, change.detach().to(dy.dtype))
            dx = dx.view(*grads[0].shape[:-1], dx.shape[-1])
        return dx, None, None, *pulled(change, trained, dy, x)


def pulled(made: Tensor, trained: Sequence[Tensor], dy: Tensor, x: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of <dy^T x, made> for every trained tensor that `made` (out, in) is a function of."""
    if not trained:
        return ()
    return torch.autograd.grad(made, trained, outer(dy, x).to(made.dtype), allow_unused=True)
