"""Rounding in the forward pass that the backward pass does not see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.ops.linalg import Context


def round_through(values: Tensor) -> Tensor:
    """The nearest integers, halves to even; the gradient is that of the values themselves."""
    return straight_through(values, torch.round)


def straight_through(values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """`rounding(values)`, of the shape of `values`; the gradient is that of the values themselves."""
    rounded: Tensor = _StraightThrough.apply(values, rounding)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    """A sum of the values and a detached difference would miss the grid by a unit in the last place."""

    @staticmethod
    def forward(ctx: Context, values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(values)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
