"""MiSS: one block of rows shared by all slices of the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Additive, Factors, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.blocks import blocks_linear, blocks_update
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def miss_form_keys(config: MiSS.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "MISS",
        "r": config.rank,
        "miss_dropout": config.dropout,
        "mini_r": config.mini_rank or 1,
        "init_weights": True if config.mini_rank is None else "mini",
    }


@ADAPTERS.register
class MiSS(Additive):
    """Matrix shard sharing: the input is cut into slices of r features, which all go through the same matrix.

        t  = x_1 + x_2 + ... + x_ceil(in / r)
        y  = x W^T + b + t D
        W' = W + [D^T D^T ... D^T], cut to `in` columns

    with r = `rank`, the width of the slices x_i of drop(x), the last one padded with zeros; drop is dropout of
    probability `dropout`. It is LoRA with A = [I I ... I] frozen, B = D^T, s = 1. With `mini_rank: m` the matrix is (r,
    m) and is repeated along the outputs too, out / m times; m divides out.

    Shapes: t (tokens, r), D (r, out) = 0, or (r, m) = 0, so W' = W at step 0, and D has a gradient from the first step
    on.
    Trains: r out numbers per site; r m with `mini_rank: m`. Of the input only t is kept for the backward pass, r
    numbers a token.
    Source: Kang and Yin, "MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing", 2024, arXiv
    2409.15371, earlier titles "Bone" and "DiSHA"; checked against PEFT's layers and its numbers.
    Departures: none. What the paper's first version calls Bone is `bat` here.
    """

    aliases = {
        "disha matrix_shard_sharing": "adapter: miss",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"D": "core"}
    peft = PeftForm(miss_form_keys, names={"D": "miss_block"}, transposed=False)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(64, gt=0, description="width of the slices of the input")
        mini_rank: int | None = Field(
            None, gt=0, description="outputs that share a column are this far apart; by default none share"
        )
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.rank > site.in_features:
            raise ValueError(f"rank {config.rank} is more than the inputs; use at most {site.in_features}")
        columns = config.mini_rank or site.out_features
        if site.out_features % columns:
            raise ValueError(
                f"mini_rank {columns} does not divide the {site.out_features} outputs; use a divisor of them"
            )
        self.D = nn.Parameter(torch.zeros(config.rank, columns))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def change(self) -> Tensor:
        slices = -(-self.site.in_features // self.config.rank)
        return self._rows().repeat(1, slices)[:, : self.site.in_features]

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        t = self._summed(F.dropout(x, self.config.dropout, self.training), dtype)
        return blocks_linear(x, base, t[..., None, :], self._rows()[None], dtype=dtype)

    def update(self, x: Tensor) -> Tensor:
        t = self._summed(x, self.compute_dtype or x.dtype)
        return blocks_update(t[..., None, :], self._rows()[None]).to(x.dtype)

    def _summed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of the slices, (..., in) -> (..., r)."""
        missing = -x.shape[-1] % self.config.rank
        padded = F.pad(x.to(dtype), (0, missing)) if missing else x.to(dtype)
        slices: Tensor = padded.unflatten(-1, (-1, self.config.rank))
        return slices.sum(dim=-2)

    def _rows(self) -> Tensor:
        """D^T, repeated along the outputs where they share: (out, r)."""
        return self.D.mT.repeat(self.site.out_features // self.D.shape[1], 1)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        assert start is None or isinstance(start, MiSS)
        rows = self._rows() if start is None else self._rows() - start._rows()
        width, rank = self.site.in_features, self.config.rank
        eye = torch.eye(rank, device=rows.device)
        return eye.repeat(1, -(-width // rank))[:, :width], rows.float()

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (config.mini_rank or site.out_features))
