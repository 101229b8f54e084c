"""The one autograd node of a low-rank term beside a frozen matmul: gain, dropout and formed factors included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrft.ops.dropout import Dropped, clear
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.made import Made, made_of, make_again
from lrft.ops.products import multiplied, widen, working

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
    """Factors that are a function of few trained tensors, formed in forward and again in backward.

    Attributes:
        form: (dtype they are used in, *trained) -> (down, up), in that dtype or in float32.
        pull: (that dtype, d_down or None, d_up or None, *trained) -> the gradient of every trained tensor.
        trains_down, trains_up: which of the two depend on the trained tensors; no gradient is computed for the other.
        kept: whether the factors are kept between the two, where forming them is dear.
    """

    trained: tuple[Tensor, ...]
    form: Callable[..., Pair]
    pull: Callable[..., tuple[Tensor | None, ...]]
    trains_down: bool = True
    trains_up: bool = True
    kept: bool = False

    def cast(self, dtype: torch.dtype, *trained: Tensor) -> Pair:
        """Both factors in `dtype`."""
        down, up = self.form(dtype, *trained)
        return down.to(dtype), up.to(dtype)


@dataclass(frozen=True)
class Product:
    """What one product is made of beside its input and what trains.

    Attributes:
        base: the frozen map; None for the term alone.
        scale: of the term.
        dropped: the input of the term, where some of it is dropped.
        weight: (out, in) of `base` where it was decoded already.
    """

    base: FrozenMap | None
    parts: Formed
    scale: float
    dropped: Dropped | None = None
    weight: Tensor | None = None

    def multiply(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """The product of x (..., in) with the gain (out,), (..., out)."""
        made = made_of(x) if self.parts.trains_down else None
        y: Tensor = _BranchMatmul.apply(x, self, made, gain, *self.parts.trained)  # type: ignore[no-untyped-call]
        return y


class _Kept(Context):
    base: FrozenMap | None
    parts: Formed
    scale: float
    factor: float | None
    again: Callable[..., Tensor] | None
    parents: int
    gained: bool


class _BranchMatmul(torch.autograd.Function):
    """y = x W^T + (g - 1) * k d W^T + g * s k (d down^T) up^T + b, with d the kept entries of x and k = `factor`.

    Without dropout that is g * (x W^T + s (x down^T) up^T) + b, and the scales are folded into the matmuls.
    Saves d where `down` trains, or what d is made of, t = d down^T, and with a gain u = d W^T, or y where there is
    neither dropout nor bias; decodes W and forms the factors again in the backward pass.
    With P = s k dy (g * up) and M = dy^T t:
    dx = dy W + zeros at what was dropped in [k ((g - 1) * dy) W + P down], or (g * dy) W + P down without dropout;
    d_down = P^T d, d_up = s k g * M, dg = k sum(dy * u) + s k sum(up * M) or sum(dy * y) / g, and `pull` takes them to
    what trains.
    """

    @staticmethod
    def forward(
        ctx: _Kept, x: Tensor, product: Product, made: Made | None, gain: Tensor | None, *trained: Tensor
    ) -> Tensor:
        flat, dropped, parts = x.reshape(-1, x.shape[-1]), product.dropped, product.parts
        # Of the product only these: its decoded weight and what was dropped are not kept by name.
        ctx.base, ctx.parts, ctx.factor = product.base, parts, None if dropped is None else dropped.factor
        ctx.scale = product.scale * (ctx.factor or 1)
        seen, work = flat if dropped is None else dropped.kept, working(flat)
        down, up = parts.cast(work, *trained)
        wide = widen(flat, work, "x")
        kept = wide if dropped is None else widen(seen, work, "kept")
        t = kept @ down.mT
        u = None
        if product.base is None:
            y = (t @ up.mT).mul_(ctx.scale)
        else:
            weight = product.base.weight() if product.weight is None else product.weight
            weight = widen(weight, work, "weight")
            y, u = _frozen_part(wide, kept, weight, product.base.bias, ctx.factor, gain, x.dtype)
            y.addmm_(t, _gained(up, gain).mT, alpha=ctx.scale)
        result, empty = in_shape_of(y.to(x.dtype), x), flat.new_empty(0)
        ctx.gained = gain is not None and u is None
        of = () if made is None else made.of
        ctx.again, ctx.parents = None if made is None else made.again, len(of)
        saved = (
            seen if parts.trains_down and made is None else empty,
            t.to(x.dtype) if parts.trains_up or gain is not None else empty,
            result if ctx.gained else empty if u is None else u.to(x.dtype),
            empty if dropped is None else dropped.zeros,
        )
        factors = (down, up) if parts.kept else ()
        ctx.save_for_backward(*saved, empty if gain is None else gain, *of, *factors, *trained)
        return result

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, t, u, zeros, gains, *rest = ctx.saved_tensors
        of, trained = rest[: ctx.parents], rest[ctx.parents :]
        parts, gain = ctx.parts, gains if gains.numel() else None
        given = grads[0].reshape(-1, grads[0].shape[-1])
        dy = widen(given, work := working(given), "dy")
        if parts.kept:
            down, up, *trained = trained
        else:
            down, up = parts.cast(work, *trained)
        p = (dy @ _gained(up, gain)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            weight = None if ctx.base is None else widen(ctx.base.weight(), work, "weight")
            if ctx.factor is None:
                dx = _input_gradient(dy, p, down, weight, gain, given.dtype)
            else:
                dx = _dropped_gradient(dy, p @ down, weight, gain, zeros, ctx.factor)
            dx = dx.to(given.dtype).view(*grads[0].shape[:-1], down.shape[1])
        if ctx.again is not None:
            seen = make_again(ctx.again, of, None if ctx.factor is None else zeros)
        d_down = (p.mT @ widen(seen, work, "x")).float() if parts.trains_down else None
        d_up = d_gain = None
        if parts.trains_up or gain is not None:
            d_up = (dy.mT @ t.to(work)).float().mul_(ctx.scale)
            if gain is not None:
                dots = column_dots(given, u.view_as(given))
                if ctx.gained:  # a gain of exactly 0 is that of a dead row, which nothing moves
                    d_gain = torch.where(gain == 0, 0, dots / gain)
                else:
                    d_gain = dots.mul_(ctx.factor or 1.0).add_((d_up * up).sum(1))
                d_up = d_up.mul_(gain[:, None]) if parts.trains_up else None
        return dx, None, None, d_gain, *parts.pull(work, d_down, d_up, *trained)


def _gained(up: Tensor, gain: Tensor | None) -> Tensor:
    return up if gain is None else (up * gain[:, None]).to(up.dtype)


def _frozen_part(
    flat: Tensor,
    kept: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: float | None,
    gain: Tensor | None,
    half: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """What y is before its term is added, and what of it the gradient of the gain needs.

    Args:
        kept: `flat` (tokens, in) itself without dropout, where `factor` is None.
    """
    if gain is None:
        return multiplied(flat, weight.mT, half, "y", bias), None
    if factor is None:
        if bias is None and _in_weight(flat, flat.shape[1]):
            return multiplied(flat, (weight * gain[:, None]).mT, half, "y"), None
        u = flat @ weight.mT
        y = scale_columns(u, gain)
        return (y, None) if bias is None else (y.add_(bias), u)
    u = kept @ weight.mT
    return multiplied(flat, weight.mT, half, "y", bias).addcmul_(u, _less_one(gain, factor, u.dtype)), u


def _input_gradient(
    dy: Tensor, p: Tensor, down: Tensor, weight: Tensor | None, gain: Tensor | None, half: torch.dtype
) -> Tensor:
    """Dx (tokens, in) where nothing was dropped."""
    if weight is None:
        return p @ down
    if gain is not None and _in_weight(dy, down.shape[1]):
        weight, gain = weight * gain[:, None], None
    dy = dy if gain is None else scale_columns(dy, gain)
    return multiplied(dy, weight, half, "dx").addmm_(p, down)


def _dropped_gradient(
    dy: Tensor, term: Tensor, weight: Tensor | None, gain: Tensor | None, zeros: Tensor, factor: float
) -> Tensor:
    """Dx (tokens, in) from that of the term, P down, which is overwritten."""
    if weight is not None and gain is not None:
        term.addmm_(dy * _less_one(gain, factor, dy.dtype), weight)
    clear(term, zeros)
    return term if weight is None else term.addmm_(dy, weight)


def _in_weight(rows: Tensor, columns: int) -> bool:
    """Whether a gain is multiplied into a weight of so many columns: float32 loses nothing, and it is the smaller."""
    return rows.dtype == torch.float32 and len(rows) >= columns


def _less_one(gain: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """K (g - 1): a gain near 1 would be rounded away, its distance from 1 is as exact as what it multiplies."""
    return ((gain - 1) * factor).to(dtype)


def scale_columns(u: Tensor, gain: Tensor) -> Tensor:
    """U * gain for u (tokens, out) and gain (out,) float32, which is never rounded: 1.001 is 1 in bfloat16.

    In half precision the gain is a sum of two such numbers: a third of the time of a product of two precisions.
    """
    high = gain.to(u.dtype)
    y = u * high
    return y if high.dtype == gain.dtype else y.addcmul_(u, (gain - high).to(u.dtype))


def column_dots(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the tokens of a * b, two (tokens, out) -> (out,) float32."""
    return (a * b).sum(0, dtype=torch.float32)
