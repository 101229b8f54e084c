"""Compacter: bottlenecks behind whole blocks, their matrices sums of Kronecker products with one shared factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter, Shared
from lrft.core.params import Site
from lrft.core.shared import kept_apart
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class Compacter(Adapter):
    """Compact adapters: a hypercomplex bottleneck behind every attention and every feed-forward block.

        y = f(x) + gelu(f(x) H_down + b_down) H_up + b_up
        H = sum_i C_i (x) (S_i T_i),  i = 1 ... n      (x) Kronecker's product

    with n = `division`, f the block, gelu in its form by tanh; the n x n matrices C_i are one set for the whole model,
    those of H_down and of H_up included, and S_i T_i has rank `rank`. y is what the model then adds to its residual.
    Where `targets` names blocks called mlp alone, it is Compacter++.

    Shapes: with b = `bottleneck`, H_down (hidden, b), H_up (b, hidden); C (n, n, n) ~ N(0, 1e-8), S (n, rows of H / n,
    rank) and T (n, rank, columns of H / n) Glorot-uniform times sqrt(2), biases 0. So the model is the pretrained one
    at step 0 up to about 1e-7 of the block's output, and not to the last bit.
    Trains: 2 rank (hidden + b) + hidden + b numbers per block, and n^3 once.
    Source: Karimi Mahabadi, Henderson and Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS
    2021, arXiv 2106.04647, and the authors' code (rabeehk/compacter); made for T5, carried here to attentions and
    feed-forward blocks of decoders.
    Departures: the width b is a setting; the authors divide hidden by 32, which for T5-base is 24. Norms of the base
    train where the recipe says so, as theirs do: `trainable: ['*norm*']`. Families that norm or scale what a block
    gives (Gemma 2, OLMo 2, Granite) do so behind the bottleneck.
    Advice: a learning rate of 3e-3. Attentions need layers k_proj and v_proj of one width; blocks are those called
    mlp, feed_forward or mlp_block, mixtures of experts as a whole among them, and a model without is refused. It cannot
    be merged, being no change of a weight.
    """

    aliases = {
        "compacter": "adapter: compacter\ntrainable: ['*norm*']",
        "compacter++ compacter_plus_plus": "adapter: {method: compacter, targets: [mlp]}\ntrainable: ['*norm*']",
    }
    site_kinds = ("attention", "mlp")
    provides = {"adapters"}
    roles = {
        "S_down": "lora_A",
        "T_down": "lora_B",
        "b_down": "vector",
        "S_up": "lora_A",
        "T_up": "lora_B",
        "b_up": "vector",
    }

    config: Config

    class Config(AdapterConfig):
        bottleneck: int = Field(24, gt=0, le=65_536, description="width between the two maps")
        division: int = Field(4, gt=0, le=64, description="side and number of the shared matrices")
        rank: int = Field(1, gt=0, le=65_536, description="of the other factor of the Kronecker products")

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        n, hidden, width = config.division, site.in_features, config.bottleneck
        for what, size in (("the hidden size", hidden), ("bottleneck", width)):
            if size % n:
                raise ValueError(f"division {n} does not divide {what}, {size}; use {math.gcd(hidden, n)}")
        self.rule = kept_apart(shared, Rule, lambda: self.shared(config, {}, hidden))
        for name, rows, columns in (("down", hidden // n, width // n), ("up", width // n, hidden // n)):
            setattr(self, f"S_{name}", nn.Parameter(torch.empty(n, rows, config.rank)))
            setattr(self, f"T_{name}", nn.Parameter(torch.empty(n, config.rank, columns)))
            setattr(self, f"b_{name}", nn.Parameter(torch.empty(n * columns)))
        self.reset()

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Rule(config.division)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> Compacter:
        return cls(config, site, shared)

    def reset(self) -> None:
        for name in ("down", "up"):
            for i in range(self.config.division):
                for factor in "ST":
                    nn.init.xavier_uniform_(self.get_parameter(f"{factor}_{name}")[i], gain=math.sqrt(2))
            nn.init.zeros_(self.get_parameter(f"b_{name}"))

    def forward(self, *arguments: object, base: nn.Module, **named: object) -> Any:  # type: ignore[override]
        """What the block gives, with the bottleneck behind it; of an attention, its weights as they are."""
        found = base(*arguments, **named)
        return (self.behind(found[0]), *found[1:]) if isinstance(found, tuple) else self.behind(found)

    def behind(self, h: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden): the bottleneck and its residual."""
        dtype = self.compute_dtype or h.dtype
        z = F.gelu(F.linear(h.to(dtype), *self.map("down", dtype)), approximate="tanh")
        return h + F.linear(z, *self.map("up", dtype)).to(h.dtype)

    def map(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """H^T (columns, rows) of one of the two maps, and its bias."""
        (rule,) = self.rule
        S, T = self.get_parameter(f"S_{name}"), self.get_parameter(f"T_{name}")
        H = torch.einsum("iac,ikp->akcp", rule.C, S @ T).flatten(2).flatten(0, 1)
        return H.mT.to(dtype), self.get_parameter(f"b_{name}").to(dtype)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int((2 * config.rank + 1) * (site.in_features + config.bottleneck))


class Rule(Shared):
    """C (n, n, n), the left factors of all Kronecker products of a model."""

    roles = {"C": "core"}

    def __init__(self, division: int) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.empty(division, division, division).normal_(std=1e-4))
