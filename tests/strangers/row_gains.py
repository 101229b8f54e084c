"""An adapter of a stranger: a gain on every output of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class RowGains(Adapter):
    """A gain on every row of the weight.

        W' = (1 + `strength` g) * W

    Shapes: g (out) = 0, so W' = W at step 0.
    Trains: out numbers per site.
    Source: none, an example.
    Departures: none.
    """

    provides = {"adapters", "mergeable"}
    roles = {"g": "vector"}

    config: Config

    class Config(AdapterConfig):
        strength: float = Field(1.0, gt=0)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.g = nn.Parameter(torch.zeros(site.out_features))

    def reset(self) -> None:
        nn.init.zeros_(self.g)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.config.strength * self.g[:, None] * weight

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return site.out_features
