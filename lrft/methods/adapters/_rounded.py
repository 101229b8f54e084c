"""What the adapters share that train a whole change of a weight behind a rounding of weight and inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.params import Site
from lrft.registry.config import AdapterConfig, Field, Literal


class RoundedChange(Adapter):
    """W' = Q(W + D), D (out, in) = 0 at step 0; a subclass says what Q is (`merged`) and rounds the inputs."""

    roles = {"D": "matrix"}

    config: Config

    class Config(AdapterConfig):
        bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(4, description="bits of a weight")
        activation_bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = Field(
            4,
            description="bits of an input of a layer; null leaves them as they are, and the change can be merged",
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.D = nn.Parameter(torch.zeros(site.out_features, site.in_features))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.merged(weight.float()) - weight).to(weight.dtype)

    @classmethod
    def why_not_merged(cls, config: Any, site: Site) -> str:
        if config.activation_bits is None:
            return ""
        return (
            f"{cls.name} rounds the inputs of {site.name}, which no weight says; keep the adapter separate, or train "
            "with adapter.activation_bits: null"
        )

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return site.in_features * site.out_features
