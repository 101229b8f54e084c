"""Several LoRA experts and a router on one linear map: what the token-routed mixtures share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.routed import Routed
from lrft.methods.adapters._routing import Routing, route
from lrft.ops.gated_term import gated_low_rank
from lrft.registry.config import AdapterConfig, Field


class Experts(Routed, Adapter):
    """y = x W^T + b + s sum_e g_e(x) (drop(x) A_e^T) B_e^T with A (E r, in) and B (out, E r) stacked by expert.

    A subclass says what the gates are (`gates`) and what its penalty is; one with more than a router also how tokens
    are scored (`scores`).
    """

    provides = {"adapters", "experts", "expert_count", "routed"}
    roles = {"A": "lora_A", "B": "lora_B", "router": "router"}

    config: Config

    class Config(AdapterConfig):
        experts: int = Field(8, gt=0, description="experts at every site")
        rank: int = Field(8, gt=0, le=65_536, description="rank of each expert")
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
        dropout: float = Field(0.05, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        width = config.experts * config.rank
        self.A = nn.Parameter(torch.empty(width, site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, width))
        self.router = nn.Parameter(torch.empty(config.experts, site.in_features))
        self.routing = Routing()
        self.reset()

    def reset(self) -> None:
        for tensor in (
            self.A,
            self.router,
        ):  # each expert as nn.Linear starts: the bound depends on `in` alone
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def scores(self, x: Tensor) -> Tensor:
        """Probabilities (..., E) float32 of the experts, by the router."""
        return route(x, self.router)

    def gates(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """Weights (..., E) of the experts from the router's probabilities (..., E), both float32."""
        raise NotImplementedError(f"{type(self).__name__} declares no gates")

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        config = self.config
        gates = self.scaling * self.gates(x, self.scores(x))
        dropped = self.training and config.dropout > 0
        return gated_low_rank(
            x,
            self.A,
            self.B,
            gates.repeat_interleave(config.rank, dim=-1),
            self.compute_dtype,
            [(config.rank, config.dropout)] * config.experts if dropped else (),
        )

    def take_load(self) -> dict[str, Tensor]:
        return self.routing.take_load()

    @staticmethod
    def count(config: Config, site: Site) -> int:
        each = config.rank * (site.in_features + site.out_features) + site.in_features
        return int(config.experts * each)
