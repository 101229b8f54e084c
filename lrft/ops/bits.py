"""Truth values, eight a byte, and numbers below sixteen, two a byte."""

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


def pack_nibbles(numbers: Tensor) -> Tensor:
    """(n,) uint8 below 16 -> (ceil(n / 2),) bytes, the first of two in the low half."""
    low, high = F.pad(numbers, (0, len(numbers) % 2)).view(-1, 2).unbind(1)
    packed: Tensor = low | high << 4
    return packed


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The first `count` numbers, (count,) uint8."""
    return torch.stack([packed & 15, packed >> 4], dim=1).view(-1)[:count]


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
