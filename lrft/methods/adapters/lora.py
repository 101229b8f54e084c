"""LoRA: a low-rank update beside the frozen weight."""

from __future__ import annotations

import fnmatch
import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.low_rank import low_rank_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class LoRA(Adapter):
    """Low-rank adaptation: a trained product of two thin factors beside the frozen weight.

        y  = x W^T + b + s (drop(x) A^T) B^T
        W' = W + s B A

    with r = `rank`, s = `alpha` / r, or `alpha` / sqrt(r) with `rslora: true` (rsLoRA). drop drops entries of x with
    probability `dropout`; it acts on the adapter's input alone, the base sees x undropped. `rank_pattern` and
    `alpha_pattern` set `rank` and `alpha` at sites whose name ends in a pattern; the last match counts.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W at step 0.
    Trains: r (in + out) numbers per site.
    Source: Hu et al., "LoRA", 2021, arXiv 2106.09685; scaling: Kalajdzievski, 2023, arXiv 2312.03732.
    Departures: A is Kaiming-uniform as in the authors' code (the paper says Gaussian; see `init: gaussian`).
    """

    aliases = {
        "peft low_rank": "adapter: lora",
        "rslora rank_stabilized_lora": "adapter: {method: lora, rslora: true}",
        "qlora": "quantization: nf4\nadapter: lora",
        "rsqlora": "quantization: nf4\nadapter: {method: lora, rslora: true}",
    }
    provides = {"adapters", "mergeable", "low_rank", "linear_delta", "trained_pair"}
    roles = {"A": "lora_A", "B": "lora_B"}
    peft_names = {"A": "lora_A.weight", "B": "lora_B.weight"}

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0)
        alpha: float = Field(32.0, gt=0)
        rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
        dropout: float = Field(0.0, ge=0, lt=1)
        rank_pattern: dict[str, Annotated[int, Field(gt=0)]] = Field(
            default_factory=dict,
            description="rank at sites whose name ends in the pattern; the last match counts",
        )
        alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
            default_factory=dict,
            description="alpha at sites whose name ends in the pattern; the last match counts",
        )

        def site_patterns(self) -> dict[str, list[str]]:
            """The patterns of `rank_pattern` and `alpha_pattern`."""
            return {"rank_pattern": list(self.rank_pattern), "alpha_pattern": list(self.alpha_pattern)}

        def for_site(self, name: str) -> AdapterConfig:
            """The settings at one site, patterns resolved."""
            found: dict[str, Any] = {}
            for key, patterns in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern)):
                for pattern, value in patterns.items():
                    if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}"):
                        found[key] = value
            return self.model_copy(update={**found, "rank_pattern": {}, "alpha_pattern": {}})

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.drop = nn.Dropout(config.dropout)
        self.A = nn.Parameter(torch.empty(config.rank, site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        self.reset()

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.scaling * self.B @ self.A).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dropped = self.drop(x) if self.training and self.drop.p > 0 else None
        return low_rank_linear(
            x, base, self.A, self.B, self.scaling, dropped=dropped, dtype=self.compute_dtype
        )

    def update(self, x: Tensor) -> Tensor:
        return low_rank_linear(x, None, self.A, self.B, self.scaling, dtype=self.compute_dtype)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))

    def forward_since(self, start: Adapter, x: Tensor, base: FrozenLinear) -> Tensor:
        A, B = self._factors_since(start)
        return low_rank_linear(x, base, A, B, self.scaling, dtype=self.compute_dtype)

    def _factors_since(self, start: Adapter) -> tuple[Tensor, Tensor]:
        """A' (2r, in) and B' (out, 2r) with B' A' = B A - B0 A0, as (B - B0) A + B0 (A - A0).

        The differences are formed in float32, so a change much smaller than the start survives bfloat16.
        """
        A0, B0 = start.get_parameter("A"), start.get_parameter("B")
        return torch.cat([self.A, self.A - A0]), torch.cat([self.B - B0, B0], dim=1)

    @torch.no_grad()
    def factors(self, start: Adapter | None = None) -> tuple[Tensor, Tensor]:
        A, B = (self.A, self.B) if start is None else self._factors_since(start)
        return A.float(), self.scaling * B.float()

    def peft_tensors(self, start: Adapter | None = None) -> dict[str, Tensor]:
        if start is None:
            return super().peft_tensors()
        return dict(zip("AB", self._factors_since(start), strict=True))

    @classmethod
    def peft_config(cls, config: Any, with_start: bool = False) -> dict[str, Any] | None:
        grown = (
            (math.sqrt(2) if config.rslora else 2) if with_start else 1
        )  # keeps the scale at twice the rank
        return {
            "peft_type": "LORA",
            "r": config.rank * (2 if with_start else 1),
            "lora_alpha": config.alpha * grown,
            "lora_dropout": config.dropout,
            "use_rslora": config.rslora,
        }
