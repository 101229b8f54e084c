"""Random projection by signs, whose matrix is drawn again block by block and never kept."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096  # numbers projected at a time
BITS = 32  # of a draw
STRIDE = 1_000_003  # between the generators of two seeds: more than any adapter has blocks


def project_signs(rows: Tensor, dimensions: int, seed: int) -> Tensor:
    """The product x S for independent signs S (numbers, dimensions), (rows, numbers) -> (rows, dimensions) in float32.

    E[x S S^T y^T] = dimensions x y^T. The sign at a place depends on the seed, the place and `dimensions` alone.
    """
    found = rows.new_zeros(len(rows), dimensions, dtype=torch.float32)
    for number, part in enumerate(rows.float().split(BLOCK, dim=1)):
        signs = _signs(BLOCK * dimensions, seed * STRIDE + number).view(BLOCK, dimensions)
        found += part @ signs[: part.shape[1]].to(rows.device)
    return found


def _signs(count: int, seed: int) -> Tensor:
    """So many of 1 and -1, drawn on the CPU, where every machine draws the same."""
    draws = torch.empty(-(-count // BITS), dtype=torch.int64)
    draws.random_(0, 2**BITS, generator=torch.Generator().manual_seed(seed))
    bits = (draws[:, None] >> torch.arange(BITS)) & 1
    return bits.flatten()[:count].float().mul_(2).sub_(1)
