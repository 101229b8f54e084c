"""Numbers as a scale times one of a few levels: which level is nearest, and which scale serves a block best."""

from __future__ import annotations

import torch
from torch import Tensor

FACTORS = tuple(
    0.68 + 0.04 * k for k in range(13)
)  # of a block's largest magnitude, which is tried as its scale


class Levels:
    """Levels by code, (n,), in any order."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.float()
        self._sorted, self._codes = self.values.sort(stable=True)
        self._middles = (self._sorted[1:] + self._sorted[:-1]) / 2

    def codes(self, numbers: Tensor) -> Tensor:
        """The code of the level nearest to every number; what is no number (0 / 0) counts as 0."""
        places = torch.bucketize(numbers.nan_to_num(0.0, posinf=None, neginf=None), self._middles)
        return self._codes[places]

    def nearest(self, numbers: Tensor) -> Tensor:
        """The level nearest to every number."""
        return self.values[self.codes(numbers)]


def search_scales(blocks: Tensor, cost: Tensor, levels: Levels) -> Tensor:
    """The scale of every block, of `FACTORS` times its largest magnitude, that rounds it at the least cost.

    Args:
        blocks: (rows, blocks, size).
        cost: (blocks, size), of a squared error of 1 at a place.

    Returns:
        (rows, blocks), positive but where a block is all zeros.
    """
    largest = blocks.abs().amax(-1)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for factor in FACTORS:
        scale = (factor * largest)[..., None]
        error = (blocks - scale * levels.nearest(blocks / scale)).square_().mul_(cost).sum(-1)
        better = error < least
        best = torch.where(better, scale[..., 0], best)
        least = torch.where(better, error, least)
    return best
