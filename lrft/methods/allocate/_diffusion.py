"""A conditional diffusion over vectors of ranks: trained on vectors that were tried, sampled with guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1000  # of noise
BETAS = 1e-4, 2e-2  # of the first and the last level; their roots are even between
HIDDEN, TIME = 512, 64
GUIDANCE = 1.5
UNCONDITIONED = 0.1  # share of the samples that are learnt without their condition
REWARD_WEIGHT, LEAST, MOST = 0.1, 0.1, 10.0


class Denoiser(nn.Module):
    """(n, sites) noisy ranks in [-1, 1], (n,) levels and (n, width) conditions -> the noise, (n, sites)."""

    def __init__(self, sites: int, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME, HIDDEN), nn.Mish())
        self.enter = nn.Linear(sites + width, HIDDEN)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(HIDDEN), nn.Mish(), nn.Linear(HIDDEN, HIDDEN)) for _ in range(2)
        )
        self.leave = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Mish(), nn.Linear(HIDDEN, sites))

    def forward(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([noisy, condition], dim=-1)) + self.time(waves(level))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        noise: Tensor = self.leave(hidden)
        return noise


def waves(level: Tensor) -> Tensor:
    """(n, TIME): sines and cosines of the level, of wave lengths from 2 pi to 10,000 times that."""
    half = TIME // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10_000.0) / (half - 1)))
    angles = level.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def signal_left() -> Tensor:
    """(LEVELS,): the share of the variance that is signal at every level."""
    betas = torch.linspace(math.sqrt(BETAS[0]), math.sqrt(BETAS[1]), LEVELS).square()
    return torch.cumprod(1 - betas, dim=0)


def denoising_loss(
    denoiser: Denoiser, clean: Tensor, condition: Tensor, rewards: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted noise, better rewarded samples (n,) weighing more.

    Args:
        clean: (n, sites) in [-1, 1].
        condition: (n, width).
    """
    level = torch.randint(LEVELS, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    kept = torch.rand(len(clean), 1, generator=generator) >= UNCONDITIONED
    left = signal_left()[level][:, None]
    predicted = denoiser(left.sqrt() * clean + (1 - left).sqrt() * noise, level, condition * kept)
    standard = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
    weights = (1 + REWARD_WEIGHT * standard).clamp(LEAST, MOST)
    errors = F.mse_loss(predicted, noise, reduction="none").mean(dim=-1)
    return (weights * errors).mean()


@torch.no_grad()
def sample(
    denoiser: Denoiser, condition: Tensor, sites: int, steps: int, generator: torch.Generator
) -> Tensor:
    """(sites,) in [-1, 1]: noise, denoised in `steps` deterministic steps (DDIM) under `condition` (width,).

    The noise that is taken off is e_0 + 1.5 (e_c - e_0), of the predictions with the condition and with zeros.
    """
    left = signal_left()
    levels = torch.linspace(LEVELS - 1, 0, steps).long()
    both = torch.stack([condition, torch.zeros_like(condition)])
    now = torch.randn(sites, generator=generator)
    for place, level in enumerate(levels):
        conditioned, free = denoiser(now.expand(2, -1), level.expand(2), both)
        noise = free + GUIDANCE * (conditioned - free)
        clean: Tensor = ((now - (1 - left[level]).sqrt() * noise) / left[level].sqrt()).clamp(-1, 1)
        if place == steps - 1:
            return clean
        after = left[levels[place + 1]]
        now = after.sqrt() * clean + (1 - after).sqrt() * noise
    raise AssertionError("no steps")
