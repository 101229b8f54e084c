"""`Levelled`: a storage that others read from checkpoints, in which a weight is a scale times one of a few levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.core.on_grid import InGroups
from lrft.registry.json import Json


class Levelled(FrozenLinear):
    """W[i, k] = scale[i, k] * level[code[i, k]], the scales shared by blocks within a row.

    So a weight can be rounded column by column: `search` settles the scales, `grid` says what each place can hold, and
    `take` stores what was chosen. Such a storage provides `levels`; `file_levels`, where it is one of GGUF files; or
    `integer_levels`, where lrft alone reads it back here.

    Attributes:
        file_type: what GGUF calls the storage, whose bytes are then the buffer `blocks` (out, n).
    """

    file_type: ClassVar[str] = ""

    def search(self, weight: Tensor, cost: Tensor) -> None:
        """Choose the scales that round `weight` (out, in) best, as this format stores scales; codes are then open.

        Args:
            cost: (in,), of a squared error of 1 in a column.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no search")

    def grid(self) -> tuple[Tensor, Tensor]:
        """The scale of every place (out, in) as it decodes, and the levels by code, in float32."""
        raise NotImplementedError(f"{type(self).__name__} declares no grid")

    def take(self, codes: Tensor) -> None:
        """Store codes (out, in), indices of the levels, beside the scales that are there."""
        raise NotImplementedError(f"{type(self).__name__} declares no codes")

    def hold(self, given: InGroups) -> bool:
        """Store these integers as they are; False, and nothing done, where the format has no place for them."""
        return False

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a checkpoint holds of the weight, by what follows the layer's path; it then computes in `dtype`."""
        raise NotImplementedError(f"{type(self).__name__} declares no form in checkpoints")

    @classmethod
    def fits(cls, config: Any, out_features: int, in_features: int) -> bool:
        """Whether blocks end where rows do, and readers of such checkpoints compute layers of this shape."""
        raise NotImplementedError(f"{cls.__name__} declares no blocks")

    @classmethod
    def said(cls, config: Any, dtype: torch.dtype, kept: list[str]) -> dict[str, Json]:
        """The `quantization_config` of such a checkpoint, whose layers `kept` are dense."""
        raise NotImplementedError(f"{cls.__name__} declares no form in checkpoints")
