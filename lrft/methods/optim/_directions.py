"""Random directions that are drawn again instead of kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor, str, int, int], Tensor]
"""(parameter, its name, finished steps, sample) -> z. It is called three times a step, to perturb and to update."""


def seeded(seed: int) -> Draw:
    """Standard normal z in the parameter's dtype, from a generator on its device: other devices draw other numbers."""

    def draw(param: Tensor, name: str, step: int, sample: int) -> Tensor:
        generator = generator_of(seed, step, sample, name, param.device)
        return torch.randn(param.shape, generator=generator, dtype=param.dtype, device=param.device)

    return draw


def generator_of(seed: int, step: int, sample: int, name: str, device: torch.device) -> torch.Generator:
    """A generator of its own for every combination, whatever was drawn before."""
    key = f"{seed} {step} {sample} {name}".encode()
    mixed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % 2**63
    return torch.Generator(device=device).manual_seed(mixed)
