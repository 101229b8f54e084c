"""DiaBlo: the diagonal blocks of the weight train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Additive
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class DiaBlo(Additive):
    """Diagonal blocks: group n of the outputs gets a change that sees group n of the inputs alone.

        y  = x W^T + b + [x_1 D_1, ..., x_N D_N]
        W' = W + diag(D_1^T, ..., D_N^T)

    with N = `blocks`; the slices x_n of drop(x) have ceil(in / N) features, the results ceil(out / N) numbers, the last
    slice padded with zeros and the last result cut; drop is dropout of probability `dropout`. Where ceil(in / N) and
    ceil(out / N) make fewer than N slices of the longer side, there are only so many blocks.

    Shapes: x_n (tokens, ceil(in / N)), D (N, ceil(in / N), ceil(out / N)) = 0, so W' = W at step 0.
    Trains: N ceil(in / N) ceil(out / N) numbers per site, in out / N where N divides both; the change can have full
    rank.
    Source: "DiaBlo: Diagonal Blocks Are Sufficient For Finetuning", 2025, arXiv 2506.03230; slices, padding and count
    as in the authors' code (ziyangjoy/DiaBlo).
    Departures: D is float32, not of the precision of W.
    Advice: the authors' scripts have `dropout: 0.05`, 64 blocks, learning rates of 2.5e-4 to 1.2e-3.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"D": "core"}

    config: Config

    class Config(AdapterConfig):
        blocks: int = Field(64, gt=0, description="diagonal blocks that a weight is divided into")
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.D = nn.Parameter(torch.zeros(blocks_of(config, site)))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def change(self) -> Tensor:
        blocks: Tensor = torch.block_diag(*self.D)
        return blocks.mT[: self.site.out_features, : self.site.in_features]

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(F.dropout(x, self.config.dropout, self.training))

    def update(self, x: Tensor) -> Tensor:
        count, width, _ = self.D.shape
        dtype = self.compute_dtype or x.dtype
        slices = F.pad(x.to(dtype), (0, count * width - x.shape[-1])).unflatten(-1, (count, width))
        found = torch.einsum("...ni,nio->...no", slices, self.D.to(dtype)).flatten(-2)
        return found[..., : self.site.out_features].to(x.dtype)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        count, width, height = blocks_of(config, site)
        return count * width * height


def blocks_of(config: Any, site: Site) -> tuple[int, int, int]:
    """How many blocks there are, and their inputs and outputs."""
    width, height = -(-site.in_features // config.blocks), -(-site.out_features // config.blocks)
    return max(-(-site.in_features // width), -(-site.out_features // height)), width, height
