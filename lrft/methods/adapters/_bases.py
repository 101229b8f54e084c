"""Frozen random matrices that the adapters of all sites cut their own from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lrft.core.adapter import Shared
from lrft.core.params import Site


class Bases(Shared):
    """Named random matrices, drawn once for a whole model, saved with the adapters, never trained.

    They are kept beside the adapters in checkpoints and exports, since the same seed draws other numbers on another
    device or under another version of torch.

    Args:
        peft: what PEFT puts before the names (`vera_` gives `vera_A`).
        matrices: name -> matrix.
    """

    def __init__(self, peft: str, **matrices: Tensor) -> None:
        super().__init__()
        self.peft = peft
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix)
        self._casts: dict[tuple[str, torch.dtype], tuple[tuple[int, torch.device], Tensor]] = {}
        self._grams: dict[tuple[str, int], tuple[tuple[int, torch.device], Tensor]] = {}

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """The matrix called `name` in `dtype`; a copy in another precision than the stored one is kept."""
        matrix = self.get_buffer(name)
        if matrix.dtype == dtype:
            return matrix
        state = (matrix._version, matrix.device)
        known = self._casts.get((name, dtype))
        if known is None or known[0] != state:
            known = self._casts[name, dtype] = (state, matrix.to(dtype))
        return known[1]

    def gram(self, name: str, width: int) -> Tensor:
        """M M^T in float32 for the leading `width` columns of the matrix called `name`, kept."""
        matrix = self.get_buffer(name)
        state = (matrix._version, matrix.device)
        known = self._grams.get((name, width))
        if known is None or known[0] != state:
            part = matrix[:, :width].float()
            known = self._grams[name, width] = (state, part @ part.mT)
        return known[1]

    def peft_tensors(self) -> dict[str, Tensor]:
        return {f"{self.peft}{name}": matrix for name, matrix in self.named_buffers()}


def widest(sites: Iterable[Site]) -> tuple[int, int]:
    """The largest number of outputs and the largest number of inputs among the sites."""
    shapes = [(site.out_features, site.in_features) for site in sites]
    return max(out for out, _ in shapes), max(width for _, width in shapes)
