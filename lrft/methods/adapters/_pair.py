"""The two factors of a low-rank term as LoRA holds and starts them, for the methods that only use them otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lrft.core.adapter import Adapter
from lrft.core.params import Site


class Pair(Adapter):
    """A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)) and B (out, r) = 0, r = `rank`; both train: r (in + out) numbers."""

    roles = {"A": "lora_A", "B": "lora_B"}

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self.A = nn.Parameter(torch.empty(config.rank, site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        self.reset()

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))
