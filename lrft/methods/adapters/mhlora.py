"""Multi-head LoRA: several LoRAs side by side, each with an orthogonal start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.params import Site
from lrft.core.peft import LORA_NAMES, lora_keys
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def mhlora_form_keys(config: Any, with_start: bool) -> dict[str, Json]:
    """One LoRA of all heads, with alpha such that its scale is that of a head."""
    return lora_keys(config.heads * config.rank, config.heads * config.alpha)


@ADAPTERS.register
class MHLoRA(LowRank):
    """Multi-head LoRA: several LoRAs on one layer, all of them on every token.

        y  = x W^T + b + s sum_h (x A_h^T) B_h^T
        W' = W + s sum_h B_h A_h

    with H = `heads` heads of r = `rank`, s = `alpha` / r, which is not divided by H. It is a LoRA of rank H r whose
    scale is that of rank r, and whose start is orthogonal head by head.

    Shapes: A (H r, in) and B (out, H r), stacked by head; the rows of an A_h are orthogonal and of length sqrt(in / r),
    B = 0, so W' = W at step 0.
    Trains: H r (in + out) numbers per site.
    Source: Huh et al., "Training Neural Networks from Scratch with Parallel Low-Rank Adapters", 2024, arXiv 2402.16828,
    and the layer of the authors' code (minyoungg/LTE), whose defaults of r and alpha these are.
    Departures: no bias of the adapter, which that layer offers. Carried from vision models to any linear layer.
    """

    aliases = {
        "multihead_lora": "adapter: mhlora",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B"}
    peft = PeftForm(mhlora_form_keys, names=dict(LORA_NAMES))

    config: Config

    class Config(AdapterConfig):
        heads: int = Field(2, gt=0, le=65_536, description="LoRAs at every site")
        rank: int = Field(8, gt=0, le=65_536, description="rank of each head")
        alpha: float = Field(16.0, gt=0, le=1_000_000)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(config.heads * config.rank, site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, config.heads * config.rank))
        MHLoRA.reset(self)

    @torch.no_grad()
    def reset(self) -> None:
        gain = math.sqrt(self.site.in_features / self.config.rank)
        for head in self.A.split(self.config.rank):
            nn.init.orthogonal_(head, gain)
        nn.init.zeros_(self.B)

    def branch(self) -> Branch:
        return Branch(self.A, self.B, self.scaling)

    def by_head(self, A: Tensor, B: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A_h (r, in) and B_h (out, r) of every head, as views of the stacked ones."""
        rank = self.config.rank
        return list(zip(A.split(rank), B.split(rank, dim=1), strict=True))

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.heads * config.rank * (site.in_features + site.out_features))
