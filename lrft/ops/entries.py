"""Products with a matrix of few entries beside a frozen one, and which entries of many are the largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul, outer, working

Shape = tuple[int, int]
"""(out, in) of the weight that the entries are of."""

RARE = (
    1024  # with one entry in so many, products entry by entry take less time than one with a matrix of zeros
)


def entries_linear(
    x: Tensor, base: FrozenMap | None, values: Tensor, places: Tensor, shape: Shape, dtype: torch.dtype
) -> Tensor:
    """X (W + S)^T + b, or X S^T without a base, (..., in) -> (..., out) in the dtype of x.

    S is 0 outside `places`. Nothing as large as S is kept between the two passes, and of the gradient dy^T x its
    entries at the places alone. Where products are in float32, W + S is formed and multiplied once; in half precision
    the sum would round away what is far smaller than a weight, so there are two products.

    Args:
        values: (k,) float32.
        places: (k,) flat indices, each once.
        dtype: that S is used in.
    """
    y: Tensor = _EntriesMatmul.apply(x, base, values, places, shape, dtype)  # type: ignore[no-untyped-call]
    return y


def filled(values: Tensor, places: Tensor, shape: Shape) -> Tensor:
    """S as a dense matrix, (out, in) in the dtype of the values, with a graph."""
    return values.new_zeros(shape[0] * shape[1]).index_add(0, places, values).view(shape)


def largest(scores: Tensor, count: int) -> Tensor:
    """Flat indices of the `count` largest scores, ascending; of equal ones the first.

    Raises:
        ValueError: a score is no number.
    """
    flat = _checked(scores)
    least = flat.topk(count).values[-1]
    above = (flat > least).nonzero().flatten()
    tied = (flat == least).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, tied]).sort().values


def shares(names: Sequence[str], scores: Callable[[str], Tensor], count: int) -> dict[str, int]:
    """How many of the `count` largest scores of all names each has; of equal ones the first names' come first.

    Args:
        scores: asked three times for every name, so that those of one name are held at a time.

    Raises:
        ValueError: a score is no number.
    """
    best = torch.empty(0)
    for name in names:
        flat = _checked(scores(name)).float()
        mine = flat.topk(min(count, len(flat))).values
        best = torch.cat([best.to(mine), mine])
        best = best.topk(min(count, len(best))).values
    least = best[-1]
    found = {name: int((scores(name) > least).sum()) for name in names}
    left = count - sum(found.values())
    for name in names:
        tied = min(left, int((scores(name) == least).sum()))
        found[name], left = found[name] + tied, left - tied
    return found


def _checked(scores: Tensor) -> Tensor:
    flat = scores.flatten()
    if flat.isnan().any():
        raise ValueError("what places are chosen by is not finite; use other rows (data.train), or float32")
    return flat


class _Kept(Context):
    base: FrozenMap | None
    shape: Shape
    dtype: torch.dtype


class _EntriesMatmul(torch.autograd.Function):
    """Saves x and what S is made of. dx = dy (W + S); dvalues = dy^T x at the places."""

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        base: FrozenMap | None,
        values: Tensor,
        places: Tensor,
        shape: Shape,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.base, ctx.shape, ctx.dtype = base, shape, dtype
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, values, places)
        if base is None:
            return in_shape_of(_product(flat.to(dtype), values, places, shape).to(x.dtype), x)
        weight = base.weight()
        if _is_summed(flat, dtype):
            return in_shape_of(linear(flat, _sum(weight, values, places), base.bias), x)
        y = _product(flat.to(dtype), values, places, shape).to(x.dtype)
        y += linear(flat, weight, base.bias)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values, places = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            weight = None if ctx.base is None else ctx.base.weight()
            if weight is not None and _is_summed(dy, ctx.dtype):
                dx = matmul(dy, _sum(weight, values, places))
            else:
                dx = _product(dy.to(ctx.dtype), values, places, ctx.shape, turned=True).to(dy.dtype)
                dx = dx if weight is None else dx.add_(matmul(dy, weight))
            dx = dx.view(*grads[0].shape[:-1], dx.shape[-1])
        if ctx.needs_input_grad[2]:
            dvalues = _gathered(dy.to(ctx.dtype), x.to(ctx.dtype), places, ctx.shape).to(values.dtype)
        return dx, None, dvalues, None, None, None


def _product(x: Tensor, values: Tensor, places: Tensor, shape: Shape, turned: bool = False) -> Tensor:
    """X S^T, or X S where `turned`; entry by entry, summed in float32, where there are few."""
    if not _is_rare(values, shape):
        dense = filled(values.to(x.dtype), places, shape)
        return matmul(x, dense) if turned else linear(x, dense)
    y = x.new_zeros(len(x), shape[1] if turned else shape[0], dtype=torch.float32)
    for part, rows, columns in _parts(places, shape):
        source, target = (rows, columns) if turned else (columns, rows)
        y.index_add_(1, target, x.index_select(1, source).float().mul_(values[part]))
    return y


def _is_summed(rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether S is added to the weight before the product: float32 holds both, and one product is taken."""
    return working(rows) == torch.float32 and dtype in (rows.dtype, torch.float32)


def _sum(weight: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """W + S in float32, (out, in)."""
    summed = weight.float() if weight.dtype != torch.float32 else weight.clone()
    return summed.view(-1).index_add_(0, places, values).view(weight.shape)


def _gathered(dy: Tensor, x: Tensor, places: Tensor, shape: Shape) -> Tensor:
    """The entries of dy^T x at the places."""
    if not _is_rare(places, shape):
        return outer(dy, x).flatten().index_select(0, places)
    found = [
        (dy.index_select(1, rows).float() * x.index_select(1, columns)).sum(0)
        for _, rows, columns in _parts(places, shape)
    ]
    return torch.cat(found)


def _is_rare(entries: Tensor, shape: Shape) -> bool:
    return RARE * len(entries) <= shape[0] * shape[1]


def _parts(places: Tensor, shape: Shape) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Entries by as many as make a tensor of activations, with their rows and columns."""
    size = max(shape)
    for start in range(0, len(places), size):
        part = slice(start, start + size)
        rows = places[part].div(shape[1], rounding_mode="floor")
        yield part, rows, places[part] - rows * shape[1]
