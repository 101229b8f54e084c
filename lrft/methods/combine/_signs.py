"""Electing a sign for every entry, and averaging those that bear it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_elected(trimmed: Sequence[Tensor], weights: Sequence[float], elect: str) -> Tensor:
    """Sum of w_t tau_t over the parents whose entry has the elected sign, divided by how many these are.

    Args:
        trimmed: (out, in) of every parent; an entry of 0 has no sign.
        elect: `mass`, the sign of the sum, or `count`, that of most parents; 0 elects plus.
    """
    stacked = torch.stack(list(trimmed))
    signs = stacked.sign()
    votes = stacked.sum(0) if elect == "mass" else signs.sum(0)
    agree = signs == torch.where(votes >= 0, 1.0, -1.0)
    weighted = stacked * torch.tensor(list(weights)).view(-1, 1, 1)
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)
