"""MiSS: one block of rows shared by all slices of the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank, PeftForm
from lrft.core.params import Site
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
class MiSS(LowRank):
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
        rank: int = Field(64, gt=0, le=65_536, description="width of the slices of the input")
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

    def branch(self) -> Branch:
        """The frozen identities side by side, which one product sums the slices with, and D^T."""
        width, copies = self.site.in_features, self.site.out_features // self.D.shape[1]

        def form(dtype: torch.dtype, D: Tensor) -> tuple[Tensor, Tensor]:
            eye = torch.eye(len(D), dtype=dtype, device=D.device)
            return eye.repeat(1, -(-width // len(D)))[:, :width], D.mT.repeat(copies, 1)

        def pull(dtype: torch.dtype, dA: Tensor | None, dB: Tensor | None, D: Tensor) -> tuple[Tensor]:
            assert dB is not None
            return (dB.unflatten(0, (copies, -1)).sum(0).mT,)

        formed = Formed((self.D,), form, pull, trains_down=False)
        return Branch(dropout=self.config.dropout, formed=formed)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (config.mini_rank or site.out_features))
