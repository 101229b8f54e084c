"""Changes of several parents, added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of w_t delta_t, (out, in)."""
    return (torch.stack(list(changes)) * torch.tensor(weights).view(-1, 1, 1)).sum(0)
