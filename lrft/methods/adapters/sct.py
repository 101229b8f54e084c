"""SCT: the salient channels of the attention's output are mixed by a small matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.add_at import add_at
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Iterator, Literal, Problem, RecipeView
from lrft.registry.errors import NotMergeable


@ADAPTERS.register
class SCT(Adapter):
    """Salient channel tuning: the largest outputs of a layer are mixed by a small matrix that trains.

        z  = x W^T
        y  = z + b,  y[R] += s z[R] L^T
        W' = (I + s P L P^T) W

    with R the N = floor(out `share`) channels that are tuned, P (out, N) the columns of the identity at R, s = `scale`.
    Which channels are R is the init's to say: `init: sct` takes the largest on the training rows; with
    `channels: random` they are drawn once. R is saved beside L. With `bias: true` the module is the authors',
    y[R] += s (y[R] L^T + l), with b seen and a bias l of its own, which a layer without one cannot hold: it is not
    merged.

    Shapes: L (N, N) ~ truncated normal of deviation 0.02, l (N) = 0: W' is near W at step 0 and not W, as published.
    Trains: N^2 numbers per site, and N with `bias`. z[R] is kept for the backward pass, not the input.
    Source: Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV 2023,
    arXiv 2309.08513, and the authors' code (96 of 768 channels of a ViT; its Swin model was read).
    Departures: carried over from images. Settled here: the output of the attention's last linear layer is mixed, so
    that L merges into that layer; the code mixes the residual stream which that output has joined, and no weight could
    hold that. L does not see b unless `bias` asks for it; a restart begins with L = 0.
    Advice: the authors' settings name scales such as 0.4, and tune rate and weight decay for every task.
    """

    aliases = {
        "salient_channel_tuning": "adapter: sct\ninit: sct",
    }
    provides = {"adapters", "mergeable", "moved_start", "chosen_channels"}
    roles = {"L": "core", "bias": "vector"}

    config: Config
    bias: nn.Parameter | None

    class Config(AdapterConfig):
        targets: str | list[str] = Field(
            ["o_proj"], description="as for every adapter; by default the last layers of the attentions"
        )
        share: float = Field(0.125, gt=0, le=1, description="of the outputs that are tuned")
        scale: float = Field(1.0, gt=0, description="of what is added")
        bias: bool = Field(
            False, description="a bias of its own and the layer's seen, as published; not merged then"
        )
        channels: Literal["measured", "random"] = Field(
            "measured", description="measured: those that init: sct finds; random: drawn once"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Channels that nobody chose, and a bias that a restart would have to move."""
            chosen = recipe["init.method"] == "sct"
            if self.channels == "measured" and not chosen:
                message = "chooses no channels for adapter: sct; write init: sct, or adapter.channels: random"
                yield Problem("init.method", message)
            if self.channels == "random" and chosen:
                yield Problem(
                    "adapter.channels", "are those that init: sct chooses; write measured, or another init"
                )
            if self.bias and recipe["restart"] is not None:
                yield Problem("adapter.bias", "cannot be moved into the base by a restart; write false")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        many = channel_count(config, site)
        if many == 0:
            least = 1 / site.out_features
            raise ValueError(
                f"share {config.share:g} is none of {site.out_features} outputs; use {least:.2g} or more"
            )
        self.register_buffer("channels", torch.randperm(site.out_features)[:many].sort().values.int())
        self.L = nn.Parameter(nn.init.trunc_normal_(torch.empty(many, many), std=0.02))
        self.register_parameter("bias", nn.Parameter(torch.zeros(many)) if config.bias else None)
        if config.bias:
            self.provides = type(self).provides - {"mergeable"}  # type: ignore[misc]

    def reset(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def delta_weight(self, weight: Tensor) -> Tensor:
        if self.config.bias:
            raise NotMergeable(
                f"a bias of adapter: sct is no change of the weight at {self.site.name}; keep it apart"
            )
        channels = self.get_buffer("channels").to(weight.device)
        mixed = self.config.scale * (self.L.float() @ weight.float()[channels])
        return torch.zeros_like(weight, dtype=torch.float32).index_add(0, channels, mixed).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        y, channels = base(x), self.get_buffer("channels")
        dtype = self.compute_dtype or x.dtype
        z = y.index_select(-1, channels)
        if base.bias is not None and not self.config.bias:
            z = z - base.bias.detach()[channels]
        bias = None if self.bias is None else self.bias.to(dtype)
        mixed = self.config.scale * F.linear(z.to(dtype), self.L.to(dtype), bias)
        return add_at(y, mixed.to(y.dtype), channels)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        many = channel_count(config, site)
        return many * many + (many if config.bias else 0)


def channel_count(config: Any, site: Site) -> int:
    """How many outputs of a site are tuned."""
    return int(site.out_features * config.share)
