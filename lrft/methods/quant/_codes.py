"""Codes of few bits, eight at a time in as many bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CODES_PER_GROUP = 8  # eight codes of b bits are b bytes


def pack(codes: Tensor, bits: int) -> Tensor:
    """(n,) uint8 codes below 2^bits -> (ceil(n / 8) * bits,) bytes: eight codes a group, the first in the low bits."""
    if bits == 8:
        return codes
    groups = F.pad(codes, (0, -len(codes) % CODES_PER_GROUP)).view(-1, CODES_PER_GROUP).long()
    words = (groups << (bits * torch.arange(CODES_PER_GROUP, device=codes.device))).sum(1, keepdim=True)
    return (words >> (8 * torch.arange(bits, device=codes.device)) & 255).to(torch.uint8).reshape(-1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, (count,) uint8."""
    if bits == 8:
        return packed[:count]
    places = 8 * torch.arange(bits, device=packed.device)
    words = (packed.view(-1, bits).int() << places).sum(1, keepdim=True)
    shifts = bits * torch.arange(CODES_PER_GROUP, device=packed.device)
    codes: Tensor = (words >> shifts & 2**bits - 1).to(torch.uint8).reshape(-1)[:count]
    return codes
