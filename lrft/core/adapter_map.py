"""An adapter as its base sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from lrft.core.frozen import FrozenLinear


class AdapterMap(Protocol):
    """An adapter as its base sees it."""

    def __call__(self, x: Tensor, base: FrozenLinear) -> Tensor:
        """(..., in) -> (..., out): the adapted map, bias included."""
