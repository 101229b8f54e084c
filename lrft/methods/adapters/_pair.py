"""The two factors of a low-rank term as LoRA holds and starts them, for the methods that only use them otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.params import Site


class Pair(Adapter):
    """A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)) and B (out, r) = 0, r = `rank`; both train: r (in + out) numbers."""

    roles = {"A": "lora_A", "B": "lora_B"}

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.A, self.B = empty_pair(config.rank, site)
        self.reset()

    def reset(self) -> None:
        start_pair(self.A, self.B)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))


def empty_pair(rank: int, site: Site) -> tuple[nn.Parameter, nn.Parameter]:
    """A (r, in) and B (out, r), without values."""
    A, B = torch.empty(rank, site.in_features), torch.empty(site.out_features, rank)
    return nn.Parameter(A), nn.Parameter(B)


def start_pair(A: Tensor, B: Tensor) -> None:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)), whose bound depends on `in` alone, and B = 0."""
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    nn.init.zeros_(B)
