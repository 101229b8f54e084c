"""How many directions the scores of several rows have."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12  # scores that are all 0 have no directions: 0, and not 0/0


def first_share(matrix: Tensor, k: int) -> Tensor:
    """The share of the first k singular values in the sum of all, in (0, 1]; 1 where there are no more."""
    found: Tensor = torch.linalg.svdvals(matrix)
    share: Tensor = found[:k].sum() / found.sum().clamp(min=TINY)
    return share
