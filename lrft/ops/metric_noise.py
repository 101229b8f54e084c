"""Noise that hides a vector among those near it: the mechanism of d_chi-privacy with the Euclidean distance."""

from __future__ import annotations

import torch
from torch import Tensor


def metric_noise(shape: torch.Size, eta: float, generator: torch.Generator) -> Tensor:
    """Noise z (..., d) in float32 on the CPU whose last axis has the density exp(-eta ||z||_2), up to a constant.

    x + z is then no more than exp(eta ||x - x'||_2) times as likely as x' + z. A direction is drawn evenly, and the
    length from Gamma(d, 1 / eta): about d / eta long. Feyisetan et al., WSDM 2020, arXiv 1910.08902.
    """
    way = torch.randn(shape, generator=generator)
    # A sum of d exponential draws has that distribution; torch draws no other gamma from a generator of one's own.
    length = torch.empty(shape).exponential_(generator=generator).sum(-1, keepdim=True) / eta
    found: Tensor = way / way.norm(dim=-1, keepdim=True) * length
    return found
