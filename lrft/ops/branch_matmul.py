"""The one autograd node of low-rank terms beside frozen matmuls of one input: gains, dropout, formed factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.branch_parts import (
    divided,
    dropped_gradient,
    frozen_part,
    gained,
    input_gradient,
    joined,
)
from lrft.ops.dropout import Dropped
from lrft.ops.formed import Formed
from lrft.ops.gains import column_dots
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.made import Made, made_of, make_again
from lrft.ops.products import multiplied, widen, working
from lrft.ops.term import Term, owned


def multiply(
    x: Tensor, terms: Sequence[Term], dropped: Dropped | None = None, weight: Tensor | None = None
) -> list[Tensor]:
    """Every product of x (..., in), each (..., its out) in the dtype of x, in the order of the terms.

    Args:
        dropped: the input of all terms, where some of it is dropped.
        weight: (out, in) of the only base where it was decoded already.
    """
    trained = [tensor for one in terms for tensor in one.trained]
    made = made_of(x) if any(one.parts.trains_down for one in terms) else None
    return list(_BranchMatmul.apply(x, tuple(terms), dropped, made, weight, *trained))  # type: ignore[no-untyped-call]


class _Kept(Context):
    terms: tuple[Term, ...]
    factor: float | None
    again: Callable[..., Tensor] | None
    parents: int
    widths: list[int]
    from_y: list[bool]


class _BranchMatmul(torch.autograd.Function):
    """y = x W^T + (g - 1) * k d W^T + g * s k (d down^T) up^T + b, with d the kept entries of x and k = `factor`.

    Without dropout that is g * (x W^T + s (x down^T) up^T) + b, and the scales are folded into the matmuls.
    Saves d where `down` trains, or what d is made of, t = d down^T, and with a gain u = d W^T, or y where there is
    neither dropout nor bias; decodes W and forms the factors again in the backward pass.
    With P = s k dy (g * up) and M = dy^T t:
    dx = dy W + zeros at what was dropped in [k ((g - 1) * dy) W + P down], or (g * dy) W + P down without dropout;
    d_down = P^T d, d_up = s k g * M, dg = k sum(dy * u) + s k sum(up * M) or sum(dy * y) / g, and `pull` takes them to
    what trains.
    Of several maps the terms are one product with the rows of every `down` put together, and so are their share of dx
    and every d_down; the frozen maps' shares of dx are summed where the products are made, not in tensors of their own.
    """

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        terms: tuple[Term, ...],
        dropped: Dropped | None,
        made: Made | None,
        weight: Tensor | None,
        *trained: Tensor,
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        work, seen, empty = working(flat), flat if dropped is None else dropped.kept, flat.new_empty(0)
        ctx.terms, ctx.factor = terms, None if dropped is None else dropped.factor
        owns = list(owned(terms, trained))
        pairs = [one.parts.cast(work, *own) for one, (_, own) in zip(terms, owns, strict=True)]
        wide = widen(flat, work, "x")
        rows = wide, wide if dropped is None else widen(seen, work, "kept"), ctx.factor
        t = rows[1] @ joined([down for down, _ in pairs], 0).mT
        ctx.widths, ctx.from_y = [len(down) for down, _ in pairs], []
        parts = divided(t, ctx.widths, 1)
        results: list[Tensor] = []
        held: list[Tensor] = []
        for one, (magnitude, _), (_, up), part in zip(terms, owns, pairs, parts, strict=True):
            y, u, gains = _product(one, magnitude, up, part, rows, weight, x.dtype, dropped)
            results.append(in_shape_of(y.to(x.dtype), x))
            ctx.from_y.append(u is None)
            if gains:
                held += [results[-1] if u is None else u.to(x.dtype), *gains]
        wants = [one.wants_up(from_y) for one, from_y in zip(terms, ctx.from_y, strict=True)]
        needed = [t] if all(wants) else [part for part, wanted in zip(parts, wants, strict=True) if wanted]
        of = () if made is None else made.of
        ctx.again, ctx.parents = None if made is None else made.again, len(of)
        ctx.save_for_backward(
            seen if made is None and any(one.parts.trains_down for one in terms) else empty,
            joined(needed, 1).to(x.dtype) if needed else empty,
            empty if dropped is None else dropped.zeros,
            *of,
            *held,
            *(factor for one, pair in zip(terms, pairs, strict=True) if one.parts.kept for factor in pair),
            *trained,
        )
        return tuple(results)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, needed, zeros, *rest = ctx.saved_tensors
        of, terms = rest[: ctx.parents], ctx.terms
        given = [dy.reshape(-1, dy.shape[-1]) for dy in grads]
        half, work = given[0].dtype, working(given[0])
        dys = [widen(dy, work, f"dy{k}") for k, dy in enumerate(given)]
        backs = _backs(terms, work, rest[ctx.parents :])
        gains, scales = [one.gain for one in backs], [one.scale * (ctx.factor or 1.0) for one in terms]
        ups = [gained(one.up, one.gain) for one in backs]
        p = joined([(dy @ up).mul_(s) for dy, up, s in zip(dys, ups, scales, strict=True)], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            bases, down = [one.base for one in terms], joined([one.down for one in backs], 0)
            if ctx.factor is None:
                dx = input_gradient(bases, gains, dys, p, down, half)
            else:
                term = multiplied(p, down, half, "dx")
                dx = dropped_gradient(bases, gains, dys, term, zeros, ctx.factor, half)
            dx = dx.to(half).view(*grads[0].shape[:-1], dx.shape[-1])
        if ctx.again is not None:
            seen = make_again(ctx.again, of, None if ctx.factor is None else zeros)
        d_downs: Sequence[Tensor | None] = [None] * len(terms)
        if any(one.parts.trains_down for one in terms):
            d_downs = divided((p.mT @ widen(seen, work, "x")).float(), ctx.widths, 0)
        wants = [one.wants_up(from_y) for one, from_y in zip(terms, ctx.from_y, strict=True)]
        widths = [width for width, wanted in zip(ctx.widths, wants, strict=True) if wanted]
        parts = iter(divided(needed, widths, 1)) if widths else iter(())
        found: list[Tensor | None] = []
        for k, (one, back) in enumerate(zip(terms, backs, strict=True)):
            d_up = (dys[k].mT @ next(parts).to(work)).float().mul_(scales[k]) if wants[k] else None
            if back.gain is not None:
                found.append(back.magnitude_gradient(given[k], d_up, ctx.from_y[k], ctx.factor))
            found += back.pulled(one.parts, work, d_downs[k], d_up)
        return dx, None, None, None, None, *found


def _product(
    one: Term,
    magnitude: Tensor | None,
    up: Tensor,
    part: Tensor,
    rows: tuple[Tensor, Tensor, float | None],
    weight: Tensor | None,
    half: torch.dtype,
    dropped: Dropped | None,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Y of one map, what of it the gain's gradient needs, and the gain with its divisor, where there are."""
    wide, kept, factor = rows
    scale = one.scale * (factor or 1.0)
    if one.base is None:
        return (part @ up.mT).mul_(scale), None, []
    matrix = one.base.weight_as(wide.dtype) if weight is None else _widened(weight, wide.dtype)
    gain, held = magnitude, []
    if one.gain is not None and magnitude is not None:
        divisors = [] if one.gain.norms is None else [one.gain.norms(matrix[0], not matrix[1])]
        gain = magnitude / divisors[0] if divisors else magnitude
        held = [gain, *divisors]
    zeros = None if dropped is None else dropped.zeros
    y, u = frozen_part(wide, kept, matrix, one.base.bias, factor, gain, half, zeros)
    return y.addmm_(part, gained(up, gain).mT, alpha=scale), u, held


def _widened(weight: Tensor, work: torch.dtype) -> tuple[Tensor, bool]:
    matrix = widen(weight, work, "weight")
    return matrix, matrix is not weight


@dataclass
class _Back:
    """What the backward pass has of one term.

    Attributes:
        trained: what its factors `down` and `up` are made of.
        u, gain, divisor: as `_product` gives them, with y for u where there is none; or None.
    """

    trained: list[Tensor]
    down: Tensor
    up: Tensor
    u: Tensor | None = None
    gain: Tensor | None = None
    divisor: Tensor | None = None

    def magnitude_gradient(
        self, dy: Tensor, d_up: Tensor | None, from_y: bool, factor: float | None
    ) -> Tensor:
        """That of the magnitude (out,), from y, or from u and the gradient of `up` before its gain."""
        assert self.gain is not None and self.u is not None
        dots = column_dots(dy, self.u.view_as(dy))
        if from_y:  # a gain of exactly 0 is that of a dead row, which nothing moves
            dots = torch.where(self.gain == 0, 0, dots / self.gain)
        else:
            assert d_up is not None
            dots = dots.mul_(factor or 1.0).add_((d_up * self.up).sum(1))
        return dots if self.divisor is None else dots / self.divisor

    def pulled(
        self, parts: Formed, work: torch.dtype, d_down: Tensor | None, d_up: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of what the factors are made of."""
        if d_up is not None and self.gain is not None and parts.trains_up:
            d_up = d_up.mul_(self.gain[:, None])
        down = d_down if parts.trains_down else None
        return parts.pull(work, down, d_up if parts.trains_up else None, *self.trained)


def _backs(terms: Sequence[Term], work: torch.dtype, saved: Sequence[Tensor]) -> list[_Back]:
    """What forward saved, in its order: gains, factors that are kept, what trains."""
    left = iter(saved)
    gains = [[next(left) for _ in range(one.saved)] for one in terms]
    kept = [(next(left), next(left)) if one.parts.kept else None for one in terms]
    found = []
    for one, gain, pair, (_, own) in zip(terms, gains, kept, owned(terms, list(left)), strict=True):
        down, up = one.parts.cast(work, *own) if pair is None else pair
        found.append(_Back(own, down, up, *gain))
    return found
