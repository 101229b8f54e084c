"""VeRA: two frozen random matrices for the whole model, two trained vectors a site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._bases import Bases, widest
from lrft.ops.low_rank import MadeFactors, made_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class VeRA(Adapter):
    """Vector-based random matrix adaptation: all sites share one random pair and train two vectors each.

        y  = x W^T + b + v * ((u * (drop(x) A^T)) B^T)
        W' = W + diag(v) B diag(u) A

    with r = `rank`, no scale; drop is dropout of probability `dropout`. A and B are the leading columns and rows of one
    frozen pair for the whole model, Kaiming-uniform for the pair's own size: |A| < sqrt(6 / largest in),
    |B| < sqrt(6 / r).

    Shapes: A (r, in), B (out, r); u (r) = `start` (0.1), v (out) = 0, so W' = W at step 0.
    Trains: r + out numbers per site. Only x A^T is kept for the backward pass, r numbers a token.
    Source: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv 2310.11454; u and v are its
    d and b. Start and shapes checked against PEFT's layer.
    Departures: none.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"u": "magnitude", "v": "core"}  # the change is linear in either
    peft_names = {"u": "vera_lambda_d", "v": "vera_lambda_b"}

    class Config(AdapterConfig):
        rank: int = Field(256, gt=0)
        start: float = Field(0.1, description="first value of every entry of u")
        dropout: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def shared(cls, config: Any, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """The pair for the widest sites."""
        out, width = widest(sites.values())
        A, B = torch.empty(config.rank, width), torch.empty(out, config.rank)
        for matrix in (A, B):
            nn.init.uniform_(matrix, -math.sqrt(6 / matrix.shape[1]), math.sqrt(6 / matrix.shape[1]))
        return Bases("vera_", A=A, B=B)

    @classmethod
    def at(cls, config: Any, site: Site, shared: nn.Module | None = None) -> VeRA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: nn.Module | None = None) -> None:
        super().__init__(config, site)
        self.drop = nn.Dropout(config.dropout)
        made = self.shared(config, {site.name: site}, 0) if shared is None else shared
        assert isinstance(made, Bases)
        self.bases = (
            made,
        )  # in a tuple, so that it is no part of this module: it is saved once, not at every site
        self.u = nn.Parameter(torch.empty(config.rank))
        self.v = nn.Parameter(torch.empty(site.out_features))
        self.reset()

    def reset(self) -> None:
        nn.init.constant_(self.u, self.config.start)
        nn.init.zeros_(self.v)

    def delta_weight(self, weight: Tensor) -> Tensor:
        A, B = self._made(torch.float32).make(self.u, self.v)
        return (B @ A).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dropped = self.drop(x) if self.training and self.drop.p > 0 else None
        return self._through(x, base, dropped)

    def update(self, x: Tensor) -> Tensor:
        return self._through(x, None)

    def _through(self, x: Tensor, base: FrozenLinear | None, dropped: Tensor | None = None) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        return made_linear(
            x, base, self._made(dtype), (self.u, self.v), self.scaling, dropped=dropped, dtype=dtype
        )

    def _made(self, dtype: torch.dtype) -> MadeFactors:
        """A as drawn and diag(v) B diag(u)."""
        (shared,) = self.bases
        A = shared.cast("A", dtype)[:, : self.site.in_features]
        B = shared.cast("B", dtype)[: self.site.out_features]

        def make(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return A, v[:, None] * B * u

        def pull(dA: Tensor | None, dB: Tensor | None, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            assert dB is not None
            turned = dB * B
            return v @ turned, turned @ u

        return MadeFactors(make, pull, trains_A=False, trains_B=True)

    @torch.no_grad()
    def factors(self, start: Adapter | None = None) -> tuple[Tensor, Tensor]:
        A, B = self._made(torch.float32).make(self.u, self.v)
        return A.clone(), B if start is None else B - start.factors()[1]

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank + site.out_features)

    def peft_tensors(self, start: Adapter | None = None) -> dict[str, Tensor]:
        return {"u": self.u.detach(), "v": self.v.detach()}

    @classmethod
    def peft_config(cls, config: Any, with_start: bool = False) -> dict[str, Any] | None:
        return {
            "peft_type": "VERA",
            "r": config.rank,
            "vera_dropout": config.dropout,
            "d_initial": config.start,
        }
