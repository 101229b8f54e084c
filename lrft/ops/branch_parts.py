"""What the node of low-rank terms computes of one frozen map: its product, its share of dx, and the gain on both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.ops.dropout import clear
from lrft.ops.dropped_products import Packed, kernels_of
from lrft.ops.formed import FrozenMap
from lrft.ops.gains import scale_columns
from lrft.ops.native import Kernels
from lrft.ops.products import multiplied, times


def frozen_part(
    wide: Tensor,
    kept: Tensor,
    matrix: tuple[Tensor, bool],
    bias: Tensor | None,
    factor: float | None,
    gain: Tensor | None,
    half: torch.dtype,
    zeros: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What y is before its term is added, and what of it the gradient of the gain needs.

    Args:
        wide: all of x (tokens, in); `kept` what dropout left of it, the same tensor where `factor` is None.
        zeros: what dropout took of it (`lrft.ops.dropout.Dropped.zeros`).
        matrix: W (out, in), and whether it is a copy that may be written to.
    """
    weight = matrix[0]
    if gain is None:
        return multiplied(wide, weight.mT, half, "y", bias), None
    if factor is None:
        if bias is None and _in_weight(wide, wide.shape[1]):
            return multiplied(wide, _scaled_rows(*matrix, gain).mT, half, "y"), None
        u = multiplied(wide, weight.mT, half, "u")
        y = scale_columns(u, gain) if u.dtype == half else times(u, gain, half, "y")
        return (y, None) if bias is None else (y.add_(bias), u)
    if zeros is not None and (kernels := kernels_of(wide, zeros)) is not None:
        y, by = multiplied(wide, weight.mT, half, "y"), _less_one(gain, factor, torch.float32)
        bias = None if bias is None else bias.float()
        return y, Packed(kernels, weight).kept_product(wide, zeros, y, half, by, bias)
    u = multiplied(kept, weight.mT, half, "u")
    return multiplied(wide, weight.mT, half, "y", bias).addcmul_(u, _less_one(gain, factor, u.dtype)), u


def input_gradient(
    bases: Sequence[FrozenMap | None],
    gains: Sequence[Tensor | None],
    dys: Sequence[Tensor],
    p: Tensor,
    down: Tensor,
    half: torch.dtype,
) -> Tensor:
    """Dx (tokens, in) where nothing was dropped: the sum of (g * dy) W over the maps, and p down."""
    dx: Tensor | None = None
    for base, gain, dy in zip(bases, gains, dys, strict=True):
        if base is None:
            return p @ down
        weight, fresh = base.weight_as(dy.dtype)
        if gain is not None and _in_weight(dy, down.shape[1]):
            weight = _scaled_rows(weight, fresh, gain)
        elif gain is not None:
            dy = scale_columns(dy, gain) if dy.dtype == half else times(dy, gain, half, "scaled")
        dx = multiplied(dy, weight, half, "dx") if dx is None else dx.addmm_(dy, weight)
    assert dx is not None
    return dx.addmm_(p, down)


def dropped_gradient(
    bases: Sequence[FrozenMap | None],
    gains: Sequence[Tensor | None],
    dys: Sequence[Tensor],
    term: Tensor,
    zeros: Tensor,
    factor: float,
    half: torch.dtype,
) -> Tensor:
    """Dx (tokens, in) from that of the terms, p down, which is overwritten."""
    # Without a gain nothing is multiplied twice.
    twice = any(gain is not None for gain in gains)
    if twice and (kernels := kernels_of(term, zeros)) is not None:
        return _patched_gradient(kernels, bases, gains, dys, term, zeros, factor, half)
    only = len(bases) == 1
    for base, gain, dy in zip(bases, gains, dys, strict=True):
        if base is not None and gain is not None:
            weight, _ = base.weight_as(dy.dtype)
            term.addmm_(times(dy, _less_one(gain, factor, dy.dtype), half, "scaled"), weight)
            if only:
                return clear(term, zeros).addmm_(dy, weight)
    clear(term, zeros)
    for base, dy in zip(bases, dys, strict=True):
        if base is not None:
            term.addmm_(dy, base.weight_as(dy.dtype)[0])
    return term


def _patched_gradient(
    kernels: Kernels,
    bases: Sequence[FrozenMap | None],
    gains: Sequence[Tensor | None],
    dys: Sequence[Tensor],
    dx: Tensor,
    zeros: Tensor,
    factor: float,
    half: torch.dtype,
) -> Tensor:
    """As `dropped_gradient`: that of nothing dropped, whose entries where something was are then set to theirs."""
    found = dx.new_zeros(len(zeros))
    for base, gain, dy in zip(bases, gains, dys, strict=True):
        if base is None:
            continue
        weight, fresh = base.weight_as(dy.dtype)
        Packed(kernels, weight).add_dots(dy, zeros, found)
        if gain is not None:
            both = _less_one(gain, factor, dy.dtype).add_(1)
            if _in_weight(dy, dx.shape[1]):
                weight = _scaled_rows(weight, fresh, both)
            else:
                dy = times(dy, both, half, "scaled")
        dx.addmm_(dy, weight)
    dx.view(-1).index_copy_(0, zeros, found)
    return dx


def gained(up: Tensor, gain: Tensor | None) -> Tensor:
    """G * up, (out, k) in the dtype of up."""
    return up if gain is None else (up * gain[:, None]).to(up.dtype)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Put together; one is itself, as every call counts."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def divided(whole: Tensor, widths: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    """Cut into parts of these widths."""
    if len(widths) == 1:
        return (whole,)
    parts: tuple[Tensor, ...] = whole.split(list(widths), dim=dim)
    return parts


def _scaled_rows(weight: Tensor, fresh: bool, gain: Tensor) -> Tensor:
    return weight.mul_(gain[:, None]) if fresh else weight * gain[:, None]


def _in_weight(rows: Tensor, columns: int) -> bool:
    """Whether a gain is multiplied into a weight of so many columns: float32 loses nothing, and it is the smaller."""
    return rows.dtype == torch.float32 and len(rows) >= columns


def _less_one(gain: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """K (g - 1): a gain near 1 would be rounded away, its distance from 1 is as exact as what it multiplies."""
    return ((gain - 1) * factor).to(dtype)
