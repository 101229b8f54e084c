"""Block-LoRA: several up-projections on one down-projection."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, LowRank
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator


@ADAPTERS.register
class BlockLoRA(LowRank):
    """LoRA cut into n blocks of rank r / n that share one down-projection, so that the up-projections are added.

        LoRA:  W' = W + s (B_1 A_1 + ... + B_n A_n)
        here:  W' = W + s (B_1 + ... + B_n) A
               y  = x W^T + b + s (drop(x) A^T) (B_1 + ... + B_n)^T

    with n = `blocks`, which divides r = `rank`, s = `alpha` / r; drop is dropout of probability `dropout`. The change
    has a rank of at most r / n, and a token costs what LoRA of that rank does.

    Shapes: A (r / n, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (n, out, r / n) = 0, so W' = W at step 0.
    Trains: (r / n) in + r out numbers per site.
    Source: Zhou et al., "One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot Learning",
    2025, arXiv 2501.16720, of which the abstract alone could be read; there is no public code. Settled here: the
    sub-matrices are those of the rank, as the title has one shared head and many arms and the abstract turns products
    into additions of matrices; cutting the inputs instead would leave a single up-projection. The title suggests n = 8,
    the default is a choice; start and scale are LoRA's. Carried from CLIP's two encoders to any linear layer.
    Departures: what the abstract does not say is assumed, see above.
    Advice: all blocks have the same gradient and start alike, so they stay alike: this is LoRA of rank r / n whose B
    moves n times as far in a step, with n times the numbers and the optimizer state for it. LoRA of that rank costs
    less.
    """

    aliases = {
        "one_head_eight_arms": "adapter: block_lora",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536, description="of all blocks together")
        blocks: int = Field(4, gt=0, le=65_536, description="up-projections; divides the rank")
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        dropout: float = Field(0.0, ge=0, lt=1)

        @model_validator(mode="after")
        def _check_blocks(self) -> BlockLoRA.Config:
            if self.rank % self.blocks:
                divisors = [n for n in range(1, self.rank + 1) if self.rank % n == 0]
                near = min(divisors, key=lambda n: abs(n - self.blocks))
                raise ValueError(f"blocks {self.blocks} does not divide rank {self.rank}; use {near}")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        width = config.rank // config.blocks
        self.A = nn.Parameter(torch.empty(width, site.in_features))
        self.B = nn.Parameter(torch.empty(config.blocks, site.out_features, width))
        self.reset()

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def branch(self) -> Branch:
        arms: Tensor = self.B.sum(0)
        return Branch(self.A, arms, self.scaling, dropout=self.config.dropout)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank // config.blocks * site.in_features + config.rank * site.out_features)
