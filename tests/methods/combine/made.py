"""Parents that were never trained, and what a method makes of them."""

from __future__ import annotations

import torch

from lrft.core.combine import Part
from lrft.registry.axes import COMBINATIONS


def part(seed, rank=3, scale=1.0, out=7, into=5):
    """Random factors, or with rank 0 a dense change."""
    draws = torch.Generator().manual_seed(seed)
    if rank == 0:
        return Part(torch.zeros(0, into), torch.zeros(out, 0), dense=torch.randn(out, into, generator=draws))
    return Part(torch.randn(rank, into, generator=draws), torch.randn(out, rank, generator=draws), scale)


def method(name, weights=(1.0, 1.0), seed=0, **settings):
    return COMBINATIONS.get(name)(COMBINATIONS.settings(name, **settings), weights, seed)


def change(name, parts, weights=None, site="layer", seed=0, **settings):
    """The dense change that a method makes of one layer."""
    weights = [1.0] * len(parts) if weights is None else weights
    made = method(name, weights, seed, **settings)
    made.look({site: parts})
    found = made.combine(site, parts)
    return found if isinstance(found, torch.Tensor) else found[1] @ found[0]
