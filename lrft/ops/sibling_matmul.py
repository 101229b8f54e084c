"""The low-rank terms of several frozen matmuls of one input in one autograd node, and one gradient of that input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.branch_matmul import Formed, FrozenMap, Pair
from lrft.ops.dropout import Dropped, clear
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.made import Made, made_of, make_again
from lrft.ops.products import multiplied, widen, working


@dataclass(frozen=True)
class Sibling:
    """One of the maps: y = x W^T + b + scale * (d down^T) up^T, with d the input or what dropout left of it."""

    base: FrozenMap
    parts: Formed
    scale: float


def multiply_siblings(x: Tensor, siblings: Sequence[Sibling], dropped: Dropped | None = None) -> list[Tensor]:
    """Every product of x (..., in), each (..., its out) in the dtype of x, in the order of the siblings.

    Args:
        dropped: the input of all terms, where some of it is dropped.
    """
    trained = [tensor for one in siblings for tensor in one.parts.trained]
    made = made_of(x) if any(one.parts.trains_down for one in siblings) else None
    return list(_SiblingMatmul.apply(x, tuple(siblings), dropped, made, *trained))  # type: ignore[no-untyped-call]


class _Kept(Context):
    siblings: tuple[Sibling, ...]
    factor: float | None
    again: Callable[..., Tensor] | None
    parents: int


class _SiblingMatmul(torch.autograd.Function):
    """As `lrft.ops.branch_matmul` without a gain, for maps that read one input.

    The terms are one product with the rows of every `down` put together, and so are their share of dx and every d_down;
    the frozen maps' shares of dx are summed where the products are made, not in tensors of their own.
    """

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        siblings: tuple[Sibling, ...],
        dropped: Dropped | None,
        made: Made | None,
        *trained: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.siblings, ctx.factor = siblings, None if dropped is None else dropped.factor
        flat = x.reshape(-1, x.shape[-1])
        seen, empty = flat if dropped is None else dropped.kept, flat.new_empty(0)
        pairs = _pairs(siblings, work := working(flat), trained)
        wide = widen(flat, work, "x")
        t = (wide if dropped is None else widen(seen, work, "kept")) @ torch.cat(
            [down for down, _ in pairs]
        ).mT
        results = []
        for one, (_, up), part in zip(siblings, pairs, _split(t, pairs), strict=True):
            weight = widen(one.base.weight(), work, "weight")
            y = multiplied(wide, weight.mT, x.dtype, "y", one.base.bias)
            y.addmm_(part, up.mT, alpha=one.scale * (ctx.factor or 1.0))
            results.append(in_shape_of(y.to(x.dtype), x))
        of = () if made is None else made.of
        ctx.again, ctx.parents = None if made is None else made.again, len(of)
        trains_down = made is None and any(one.parts.trains_down for one in siblings)
        zeros = empty if dropped is None else dropped.zeros
        ctx.save_for_backward(
            seen if trains_down else empty, _needed(t.to(x.dtype), siblings, pairs), zeros, *of, *trained
        )
        return tuple(results)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, t, zeros, *rest = ctx.saved_tensors
        of, trained = rest[: ctx.parents], rest[ctx.parents :]
        if ctx.again is not None:
            seen = make_again(ctx.again, of, None if ctx.factor is None else zeros)
        siblings, factor = ctx.siblings, ctx.factor or 1.0
        half, work = grads[0].dtype, working(grads[0])
        dys = [widen(dy.reshape(-1, dy.shape[-1]), work, f"dy{k}") for k, dy in enumerate(grads)]
        pairs = _pairs(siblings, work, trained)
        p = torch.cat(
            [
                (dy @ up).mul_(one.scale * factor)
                for one, (_, up), dy in zip(siblings, pairs, dys, strict=True)
            ],
            dim=1,
        )
        dx = None
        if ctx.needs_input_grad[0]:
            flat = _input_gradient(siblings, pairs, dys, p, None if ctx.factor is None else zeros, half)
            dx = flat.to(half).view(*grads[0].shape[:-1], flat.shape[-1])
        d_downs: list[Tensor | None] = [None] * len(siblings)
        if seen.numel():
            d_downs = list((p.mT @ widen(seen, work, "x")).float().split([len(down) for down, _ in pairs]))
        found: list[Tensor | None] = []
        at = 0
        widths = [len(down) for one, (down, _) in zip(siblings, pairs, strict=True) if one.parts.trains_up]
        parts = iter(t.split(widths, dim=1) if widths else ())
        for one, dy, d_down in zip(siblings, dys, d_downs, strict=True):
            own, at = trained[at : at + len(one.parts.trained)], at + len(one.parts.trained)
            d_up = (
                (dy.mT @ next(parts).to(work)).float().mul_(one.scale * factor)
                if one.parts.trains_up
                else None
            )
            found += one.parts.pull(work, d_down if one.parts.trains_down else None, d_up, *own)
        return dx, None, None, None, *found


def _pairs(siblings: Sequence[Sibling], dtype: torch.dtype, trained: Sequence[Tensor]) -> list[Pair]:
    """The factors of each, in `dtype`."""
    found, at = [], 0
    for one in siblings:
        count = len(one.parts.trained)
        found.append(one.parts.cast(dtype, *trained[at : at + count]))
        at += count
    return found


def _needed(t: Tensor, siblings: Sequence[Sibling], pairs: Sequence[Pair]) -> Tensor:
    """The columns of the siblings whose `up` trains."""
    wanted = [part for one, part in zip(siblings, _split(t, pairs), strict=True) if one.parts.trains_up]
    if len(wanted) == len(siblings):
        return t
    return torch.cat(wanted, dim=1) if wanted else t.new_empty(0)


def _split(t: Tensor, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
    """The columns of each sibling."""
    parts: tuple[Tensor, ...] = t.split([len(down) for down, _ in pairs], dim=1)
    return parts


def _input_gradient(
    siblings: Sequence[Sibling],
    pairs: Sequence[Pair],
    dys: Sequence[Tensor],
    p: Tensor,
    zeros: Tensor | None,
    half: torch.dtype,
) -> Tensor:
    """The sum of dy W over the siblings, and p down without what was dropped, (tokens, in)."""
    downs = torch.cat([down for down, _ in pairs])
    if zeros is not None:
        dx = clear(p @ downs, zeros)
        for one, dy in zip(siblings, dys, strict=True):
            dx.addmm_(dy, widen(one.base.weight(), dy.dtype, "weight"))
        return dx
    dx = multiplied(dys[0], widen(siblings[0].base.weight(), dys[0].dtype, "weight"), half, "dx")
    for one, dy in zip(siblings[1:], dys[1:], strict=True):
        dx.addmm_(dy, widen(one.base.weight(), dy.dtype, "weight"))
    return dx.addmm_(p, downs)
