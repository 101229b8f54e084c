"""Truth values, eight a byte."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pack_bits(truths: Tensor) -> Tensor:
    """(rows, n) bool -> (rows, ceil(n / 8)) uint8, the first of eight in the lowest bit."""
    padded = F.pad(truths.to(torch.uint8), (0, -truths.shape[-1] % 8)).unflatten(-1, (-1, 8))
    packed: Tensor = (padded << _places(truths.device)).sum(-1, dtype=torch.uint8)
    return packed


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` truth values of every row, (rows, count) bool."""
    return (packed[..., None] >> _places(packed.device) & 1).flatten(-2)[..., :count].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
