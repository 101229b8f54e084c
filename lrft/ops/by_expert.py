"""Tokens in the order of the experts that they go to, and back: two gathers, each the gradient of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lrft.ops.linalg import Context


@dataclass(frozen=True)
class ByExpert:
    """Where the k copies of every token stand once they are sorted by expert, in the order of the tokens within one.

    Attributes:
        order: (tokens * k,) the copy at each place; copy c is of token c // k.
        places: (tokens * k,) the place of each copy.
        experts: (tokens * k,) the expert at each place.
        counts: copies of each expert; a list, so that the device is waited for once.
        copies: k.
    """

    order: Tensor
    places: Tensor
    experts: Tensor
    counts: list[int]
    copies: int

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> ByExpert:
        """By the experts (tokens, k) that a router chose. Of tensors without values every expert gets as many."""
        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        if chosen.is_meta:
            counts = [len(part) for part in torch.arange(len(flat)).tensor_split(experts)]
        else:
            counts = torch.bincount(flat, minlength=experts).tolist()
        return cls(order, torch.argsort(order), flat[order], counts, chosen.shape[-1])

    def ends(self, experts: Sequence[int], device: torch.device) -> Tensor:
        """Where the rows of each of these experts end, (experts,) int32; the others have no rows."""
        counts = [self.counts[expert] for expert in experts]
        return torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=device)

    def tokens(self, expert: int) -> Tensor:
        """The tokens that an expert is given, in its order."""
        first = sum(self.counts[:expert])
        return self.order[first : first + self.counts[expert]] // self.copies

    def spread(self, x: Tensor) -> Tensor:
        """(tokens, d) -> (tokens * k, d): every token once for each of its experts."""
        y: Tensor = _Spread.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def gathered(self, y: Tensor) -> Tensor:
        """(tokens * k, d) -> (tokens, d): the sum over the experts of a token."""
        x: Tensor = _Gathered.apply(y, self)  # type: ignore[no-untyped-call]
        return x

    def _spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.order // self.copies)

    def _gathered(self, y: Tensor) -> Tensor:
        """In the order of the copies whatever the experts are, so that sums are the same bits in every repetition."""
        return y.index_select(0, self.places).view(-1, self.copies, y.shape[-1]).sum(1)


class _Sorted(Context):
    by: ByExpert


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Sorted, x: Tensor, by: ByExpert) -> Tensor:
        ctx.by = by
        return by._spread(x)

    @staticmethod
    def backward(ctx: _Sorted, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.by._gathered(grads[0]), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Sorted, y: Tensor, by: ByExpert) -> Tensor:
        ctx.by = by
        return by._gathered(y)

    @staticmethod
    def backward(ctx: _Sorted, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.by._spread(grads[0]), None
