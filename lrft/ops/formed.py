"""Factors of a low-rank term that may be formed of few trained tensors, and the frozen map that they stand beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""down (k, in) and up (out, k)."""


class FrozenMap(Protocol):
    """What the products here need of a `lrft.core.frozen.FrozenLinear`."""

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""

    def weight(self) -> Tensor:
        """The dense weight (out, in), decoded."""

    def weight_as(self, work: torch.dtype) -> tuple[Tensor, bool]:
        """The same in the precision of a product, and whether that is a copy that may be written to."""

    def __call__(self, x: Tensor) -> Tensor:
        """X W^T + b."""


class WithoutBias:
    """A frozen map whose bias somebody else adds."""

    bias = None

    def __init__(self, base: FrozenMap) -> None:
        self.weight, self.weight_as = base.weight, base.weight_as


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
