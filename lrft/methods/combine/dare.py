"""DARE: drop entries at random and rescale the rest."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts
from lrft.methods.combine._signs import merge_elected
from lrft.methods.combine._sum import weighted_sum
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, Literal, MethodConfig


@COMBINATIONS.register
class DARE(Combination):
    """Drop entries of every change at random, scale the rest up so that the mean stays, and add.

        tau_t = m_t * delta_t / p,  m_t ~ Bernoulli(p) for every entry
        delta = sum_t w_t tau_t,    or the elected mean of `ties` with `elect: mass` or `count`

    with p = `density`, one less the paper's drop rate, and w_t the weight of parent t, 1 / N where none is given. The
    expectation of tau_t is delta_t. The draws follow from `--seed` and the layer's name.

    Shapes: delta (out, in), written as factors of a rank that is asked for or follows from an error.
    Takes: two or more of any kind, by their changes.
    Source: Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099, and PEFT's `dare_linear_svd` and
    `dare_ties_svd`, read in 0.21.2.
    Departures: PEFT's `dare_linear` and `dare_ties` drop entries of the factors, whose product is then no longer right
    in expectation for A and B of one draw each; they are not here.
    Advice: a dropped low-rank change has full rank, so cutting it to a rank takes back part of what was drawn.
    """

    config: Config

    class Config(MethodConfig):
        density: float = Field(0.1, gt=0, le=1)
        elect: Literal["none", "mass", "count"] = "none"

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        draws = self.draws(site)
        density = self.config.density
        kept = [self._kept(part.change(), density, draws) for part in parts]
        if self.config.elect != "none":
            return merge_elected(kept, self.weights, self.config.elect)
        return weighted_sum(kept, self.weights)

    def draws(self, site: str) -> torch.Generator:
        """What the masks of a layer are drawn from, parent after parent."""
        digest = hashlib.sha256(f"{self.seed} {site}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    @staticmethod
    def _kept(change: Tensor, density: float, draws: torch.Generator) -> Tensor:
        if density == 1:
            return change
        return change * torch.bernoulli(torch.full_like(change, density), generator=draws) / density
