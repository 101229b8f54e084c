"""CapaBoost: several masked copies of one pair of factors, for more rank at no more parameters."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from lrft.core.adapter import Branch, Formed, LowRank
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, AdapterConfig, Field, Literal, model_validator

GROUP = 4  # entries, of which 2:4 masks keep two


@ADAPTERS.register
class CapaBoost(LowRank):
    """Capacity for free: one LoRA used several times, each time through other fixed masks of its factors.

        y  = x W^T + b + s sum_i (drop_i(x) (M_i * A)^T) (N_i * B)^T,  i = 1 ... d
        W' = W + s sum_i (N_i * B) (M_i * A)      * entry by entry

    with d = `copies`, r = `rank`, s = `alpha` / r; M_i and N_i hold 0 and 1, drawn once without replacement: exactly
    floor(`density` entries) ones each, or with `masks: 2_of_4` two ones in every four entries that follow one another,
    row by row, which graphics cards can skip. Each copy draws a dropout of its own, of probability `dropout`. The
    change can have rank d r.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W at step 0; M (d, r, in), N (d, out, r),
    saved with them, a byte an entry.
    Trains: r (in + out) numbers per site, as LoRA; of them 1 - (1 - `density`)^d are in some copy, by expectation.
    Source: "Increasing Model Capacity for Free: A Simple Strategy for Parameter Efficient Fine-tuning", ICLR 2024,
    arXiv 2407.01320, and the authors' code (LINs-lab/CapaBoost), whose defaults these are.
    Departures: masks come from the run's seed, site by site, where the code draws those of all layers from one stream.
    Copies share both factors from the start; in the code only A is copied when it is made, so B of the copies is random
    until its first update. The code holds both factors transposed: A then starts with the bound 1/sqrt(r), where the
    paper has LoRA's start, and 2:4 groups run along the r components of A and the outputs of B, here along inputs and
    components. Its norm for clipping counts a gradient once for every copy, here once. 2:4 masks are stored and
    multiplied as any other. Adapters and prefixes built the same way are left out.
    """

    aliases = {
        "NM_structured": "adapter: {method: capaboost, masks: 2_of_4}",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        copies: int = Field(2, gt=0, le=64, description="times that the masked factors are used")
        density: float = Field(0.5, gt=0, le=1, description="share of ones in every mask")
        dropout: float = Field(0.0, ge=0, lt=1)
        masks: Annotated[Literal["random", "2_of_4"], ADDED] = Field(
            "random", description="ones anywhere, or two in every four entries that follow one another"
        )

        @model_validator(mode="after")
        def _check_density(self) -> CapaBoost.Config:
            if self.masks == "2_of_4" and self.density != 0.5:
                raise ValueError(f"density is {self.density}, and of masks 2_of_4 it is 0.5; leave it out")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.A, self.B = empty_pair(config.rank, site)
        for name, factor in (("M", self.A), ("N", self.B)):
            drawn = [draw(factor, config) for _ in range(config.copies)]
            self.register_buffer(name, torch.stack(drawn))
        self.reset()

    def reset(self) -> None:
        start_pair(self.A, self.B)

    def branch(self) -> Branch:
        return self.of_copies(slice(None))

    def of_copies(self, which: slice) -> Branch:
        """The term of some copies: their masked factors, one below the other."""
        M, N = self.get_buffer("M")[which], self.get_buffer("N")[which]

        def form(dtype: torch.dtype, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
            return (M * A).flatten(0, 1), (N * B).transpose(0, 1).flatten(1)

        def pull(
            dtype: torch.dtype, d_down: Tensor | None, d_up: Tensor | None, A: Tensor, B: Tensor
        ) -> tuple[Tensor, Tensor]:
            assert d_down is not None and d_up is not None
            dA = (M * d_down.view(M.shape)).sum(0)
            return dA, (N * d_up.unflatten(1, (len(N), -1)).transpose(0, 1)).sum(0)

        return Branch(
            scale=self.scaling, dropout=self.config.dropout, formed=Formed((self.A, self.B), form, pull)
        )

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        if not (self.training and self.config.dropout > 0):
            return super().forward(x, base)
        y: Tensor = base(x)
        for i in range(self.config.copies):  # without a base each term draws its own dropout
            y = y + self.through(self.of_copies(slice(i, i + 1)), x, None)
        return y

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))


def draw(like: Tensor, config: CapaBoost.Config) -> Tensor:
    """One mask of the shape of `like`."""
    if config.masks == "random":
        return mask(like, config.density)
    if like.numel() % GROUP:
        shape = " x ".join(map(str, like.shape))
        raise ValueError(f"masks 2_of_4 need entries by fours, and a factor is {shape}; use another rank")
    return two_of_four(like)


def two_of_four(like: Tensor) -> Tensor:
    """Bool of the shape of `like` with two ones, at places that were drawn, in every group of four, row by row."""
    groups = torch.rand(like.numel() // GROUP, GROUP, device=like.device)
    return (
        torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(2).indices, True).view(like.shape)
    )


def mask(like: Tensor, density: float) -> Tensor:
    """Bool of the shape of `like` with floor(density * entries) ones at places that were drawn."""
    ones = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    ones[torch.randperm(like.numel())[: int(density * like.numel())]] = True
    return ones.view(like.shape)
