"""VeRA: two frozen random matrices for the whole model, two trained vectors a site."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.shared import kept_apart
from lrft.methods.adapters._bases import Bases, widest
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def vera_form_keys(config: VeRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "VERA",
        "r": config.rank,
        "vera_dropout": config.dropout,
        "d_initial": config.start,
    }


@ADAPTERS.register
class VeRA(LowRank):
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
    peft = PeftForm(vera_form_keys, names={"u": "vera_lambda_d", "v": "vera_lambda_b"})

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(256, gt=0, le=65_536)
        start: float = Field(0.1, description="first value of every entry of u")
        dropout: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """The pair for the widest sites."""
        out, width = widest(sites.values())
        A, B = torch.empty(config.rank, width), torch.empty(out, config.rank)
        for matrix in (A, B):
            nn.init.uniform_(matrix, -math.sqrt(6 / matrix.shape[1]), math.sqrt(6 / matrix.shape[1]))
        return Bases("vera_", A=A, B=B)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> VeRA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        self.bases = kept_apart(shared, Bases, lambda: self.shared(config, {site.name: site}, 0))
        self.u = nn.Parameter(torch.empty(config.rank))
        self.v = nn.Parameter(torch.empty(site.out_features))
        self.reset()

    def reset(self) -> None:
        nn.init.constant_(self.u, self.config.start)
        nn.init.zeros_(self.v)

    def branch(self) -> Branch:
        """A as drawn and diag(v) B diag(u)."""
        (shared,) = self.bases
        width, out = self.site.in_features, self.site.out_features

        def form(dtype: torch.dtype, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return shared.cast("A", dtype)[:, :width], v[:, None] * shared.cast("B", dtype)[:out] * u

        def pull(
            dtype: torch.dtype, dA: Tensor | None, dB: Tensor | None, u: Tensor, v: Tensor
        ) -> tuple[Tensor, Tensor]:
            assert dB is not None
            turned = dB * shared.cast("B", dtype)[:out]
            return v @ turned, turned @ u

        formed = Formed((self.u, self.v), form, pull, trains_down=False)
        return Branch(scale=self.scaling, dropout=self.config.dropout, formed=formed)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank + site.out_features)
