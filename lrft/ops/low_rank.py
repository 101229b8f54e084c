"""A low-rank term beside a frozen matmul: `Branch` says the formula, one autograd node computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.ops.linalg import Context, in_shape_of

Pair = tuple[Tensor, Tensor]
"""down (k, in) and up (out, k)."""


class FrozenMap(Protocol):
    """What the products here need of a `lrft.core.frozen.FrozenLinear`."""

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""

    def weight(self) -> Tensor:
        """The dense weight (out, in), decoded."""

    def __call__(self, x: Tensor) -> Tensor:
        """X W^T + b."""


@dataclass(frozen=True)
class Formed:
    """Factors that are a function of few trained tensors, formed in forward and in backward and kept in neither.

    Attributes:
        form: (dtype they are used in, *trained) -> (down, up), in that dtype or in float32.
        pull: (that dtype, d_down or None, d_up or None, *trained) -> the gradient of every trained tensor.
        trains_down, trains_up: which of the two depend on the trained tensors; no gradient is computed for the other.
    """

    trained: tuple[Tensor, ...]
    form: Callable[..., Pair]
    pull: Callable[..., tuple[Tensor | None, ...]]
    trains_down: bool = True
    trains_up: bool = True


@dataclass(frozen=True)
class Branch:
    """y = gain * (x W^T + scale (drop(x) down^T) up^T) + b, the change of one linear map by a low-rank term.

    Attributes:
        down: (k, in) and `up`: (out, k), float32 masters or made of them with a graph; None where they are `formed`.
        gain: (out,) float32 on every output, the bias left out; None for 1.
        dropout: probability that training drops an input of the branch; the base sees all of x.
        formed: the factors where they are too large to be kept.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    gain: Tensor | None = None
    dropout: float = 0.0
    formed: Formed | None = None

    def pair(self) -> Pair:
        """(down, up), formed anew where they are not kept; without a graph then."""
        if self.formed is not None:
            return self.formed.form(torch.float32, *self.formed.trained)
        assert self.down is not None and self.up is not None, "a branch has both factors, or forms them"
        return self.down, self.up

    def dense(self) -> Tensor:
        """Scale * up down, (out, in) in the factors' dtype; with a graph to the trained tensors."""
        down, up = self.pair() if self.formed is None else self._formed(self.formed)
        return self.scale * up @ down

    @staticmethod
    def _formed(formed: Formed) -> Pair:
        pair: Pair = _Forming.apply(formed, *formed.trained)  # type: ignore[no-untyped-call]
        return pair

    def parts(self) -> Formed:
        """The branch as the node takes it: plain factors are the trained tensors themselves."""
        if self.formed is not None:
            return self.formed
        down, up = self.pair()
        return Formed((down, up), _as_they_are, _to_each, down.requires_grad, up.requires_grad)


def branch_linear(
    x: Tensor,
    base: FrozenMap | None,
    branch: Branch,
    *,
    dtype: torch.dtype | None = None,
    training: bool = False,
) -> Tensor:
    """The branch on top of `base`, (..., in) -> (..., out) in the dtype of x.

    With dropout d and a gain g: b + x W^T + (g - 1) * (d(x) W^T) + g * scale (d(x) down^T) up^T, one draw of d.

    Args:
        base: the frozen map; None for the low-rank term alone, without gain and bias.
        dtype: precision of the low-rank products, by default that of x.
    """
    dtype = dtype or x.dtype
    dropped = F.dropout(x, branch.dropout) if training and branch.dropout > 0 else None
    if base is None:
        return _term(x if dropped is None else dropped, branch, dtype)
    gain = branch.gain
    if gain is None:
        return _beside(x, base, branch, dropped, dtype)
    if dropped is None:
        y = scale_columns(_beside(x, base, branch, None, dtype, bias=False), gain)
        return y if base.bias is None else y + base.bias
    correction, term = without_bias(dropped, base), _term(dropped, branch, dtype)
    return base(x) + scale_columns(correction, gain - 1) + scale_columns(term, gain)


def without_bias(x: Tensor, base: FrozenMap) -> Tensor:
    """X W^T, (..., in) -> (..., out)."""
    y = base(x)
    return y if base.bias is None else y - base.bias


def scale_columns(u: Tensor, gain: Tensor) -> Tensor:
    """U * gain for u (..., out) in half precision and gain (out,) in float32, without a float32 copy of u."""
    scaled: Tensor = _ScaleColumns.apply(u, gain)  # type: ignore[no-untyped-call]
    return scaled


def _beside(
    x: Tensor, base: FrozenMap, branch: Branch, dropped: Tensor | None, dtype: torch.dtype, bias: bool = True
) -> Tensor:
    """base(x) and the low-rank term: one node where nothing is dropped and one precision is used."""
    if dropped is None and dtype == x.dtype:
        parts = branch.parts()
        return _product(x, base, parts, branch.scale, bias)
    term = _term(x if dropped is None else dropped, branch, dtype)
    return (base(x) if bias else without_bias(x, base)) + term


def _term(x: Tensor, branch: Branch, dtype: torch.dtype) -> Tensor:
    """Scale (x down^T) up^T, computed in `dtype`, in the dtype of x."""
    parts = branch.parts()
    return _product(x.to(dtype), None, parts, branch.scale, False).to(x.dtype)


def _product(x: Tensor, base: FrozenMap | None, parts: Formed, scale: float, bias: bool) -> Tensor:
    y: Tensor = _BranchMatmul.apply(x, base, parts, scale, bias, *parts.trained)  # type: ignore[no-untyped-call]
    return y


def _as_they_are(dtype: torch.dtype, down: Tensor, up: Tensor) -> Pair:
    return down, up


def _to_each(
    dtype: torch.dtype, d_down: Tensor | None, d_up: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor | None, ...]:
    return d_down, d_up


class _Kept(Context):
    base: FrozenMap | None
    parts: Formed
    scale: float


class _BranchMatmul(torch.autograd.Function):
    """y = x W^T + b + s (x down^T) up^T with the scale folded into the matmuls.

    Saves x where `down` trains, and t = x down^T; decodes W again in the backward pass, and forms the factors again.
    With P = s dy up: dx = dy W + P down, d_down = P^T x, d_up = s dy^T t, which `pull` takes to the trained tensors.
    """

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        base: FrozenMap | None,
        parts: Formed,
        scale: float,
        bias: bool,
        *trained: Tensor,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down, up = (part.to(x.dtype) for part in parts.form(x.dtype, *trained))
        t = flat @ down.mT
        if base is None:
            y = (t @ up.mT).mul_(scale)
        else:
            y = F.linear(flat, base.weight(), base.bias if bias else None)
            y.addmm_(t, up.mT, alpha=scale)
        ctx.base, ctx.parts, ctx.scale = base, parts, scale
        empty = flat.new_empty(0)
        ctx.save_for_backward(flat if parts.trains_down else empty, t if parts.trains_up else empty, *trained)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, t, *trained = ctx.saved_tensors
        parts = ctx.parts
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        down, up = (part.to(dy.dtype) for part in parts.form(dy.dtype, *trained))
        p = (dy @ up).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = p @ down if ctx.base is None else (dy @ ctx.base.weight()).addmm_(p, down)
            dx = dx.view(*grads[0].shape[:-1], down.shape[1])
        d_down = (p.mT @ x).float() if parts.trains_down else None
        d_up = (dy.mT @ t).float().mul_(ctx.scale) if parts.trains_up else None
        return dx, None, None, None, None, *parts.pull(dy.dtype, d_down, d_up, *trained)


class _Forming(torch.autograd.Function):
    """The factors with a graph to the trained tensors, by the same `pull` as in training."""

    @staticmethod
    def forward(ctx: _Kept, parts: Formed, *trained: Tensor) -> Pair:
        ctx.parts = parts
        ctx.save_for_backward(*trained)
        down, up = parts.form(torch.float32, *trained)
        return down.float().clone(), up.float().clone()

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.parts
        d_down, d_up = grads
        wanted = d_down if parts.trains_down else None, d_up if parts.trains_up else None
        return None, *parts.pull(torch.float32, *wanted, *ctx.saved_tensors)


class _ScaleColumns(torch.autograd.Function):
    """A scale of 1 + 0.001 is 1 in bfloat16, so the gain is never rounded; the product is formed in float32."""

    @staticmethod
    def forward(ctx: Context, u: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(u, gain)
        return torch.mul(u, gain, out=torch.empty_like(u))

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor]:
        u, gain = ctx.saved_tensors
        (dy,) = grads
        d_gain = (dy * u).reshape(-1, u.shape[-1]).sum(dim=0, dtype=torch.float32)
        return torch.mul(dy, gain, out=torch.empty_like(u)), d_gain.to(gain.dtype)
