"""LoKI: the rows of a weight train that matter least for what the model knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Additive, Factors
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.add_at import add_at
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Iterator, Literal, Problem, RecipeView


@ADAPTERS.register
class LoKI(Additive):
    """Low-damage knowledge implanting: the rows of the weight train that matter least for the model's own answers.

        W' = W + P D
        y  = x W^T + b,  y[R] += x D^T

    with R the k = floor(out q / 100) rows that train, q = `percent`, P (out, k) the columns of the identity at R. Which
    rows are R is the init's to say: `init: loki` takes those whose outputs are most often among the least by integrated
    gradients. With `rows: random` they are drawn once, as a control. R is saved beside D.

    Shapes: D (k, in) = 0, so W' = W at step 0.
    Trains: k in numbers per site; the change has a rank of up to k. Rows are kept as differences beside the base, so
    that the base may be stored in few bits; merged, they are rows of an ordinary weight.
    Source: Wang et al., "LoKI: Low-damage Knowledge Implanting of Large Language Models", AAAI 2026, arXiv
    2505.22120, and the authors' code (Nexround/LoKI); counts of Llama-3.1-8B as published.
    Departures: D is float32 whatever the base; the code trains the rows themselves in the model's precision, so that
    weight decay pulls them to 0 there, and here to the pretrained rows. A bias stays as it is (the code lets it train
    at R).
    Advice: learning rate 1e-5, cosine, warm-up 0.1, 3 epochs in the authors' scripts; `percent` 10 to 30.
    """

    aliases = {
        "low_damage_knowledge_implanting knowledge_implanting": "adapter: loki\ninit: loki",
    }
    provides = {"adapters", "mergeable", "linear_delta", "chosen_rows"}
    roles = {"D": "core"}

    config: Config

    class Config(AdapterConfig):
        targets: str | list[str] = Field(
            ["down_proj"], description="as for every adapter; by default the last layers of the MLPs"
        )
        percent: float = Field(10.0, gt=0, le=100, description="of the rows that train")
        rows: Literal["measured", "random"] = Field(
            "measured", description="measured: those that init: loki finds; random: drawn once"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Rows that nobody chose."""
            chosen = recipe["init.method"] == "loki"
            if self.rows == "measured" and not chosen:
                message = "chooses no rows for adapter: loki; write init: loki, or adapter.rows: random"
                yield Problem("init.method", message)
            if self.rows == "random" and chosen:
                yield Problem(
                    "adapter.rows", "are those that init: loki chooses; write measured, or another init"
                )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        many = row_count(config, site)
        if many == 0:
            least = 100 / site.out_features
            raise ValueError(
                f"percent {config.percent:g} is none of {site.out_features} rows; use {least:.2g} or more"
            )
        drawn = torch.randperm(site.out_features)[:many].sort().values
        self.register_buffer("rows", drawn.int())
        self.D = nn.Parameter(torch.zeros(many, site.in_features))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def change(self) -> Tensor:
        zeros = self.D.new_zeros(self.site.out_features, self.site.in_features)
        return zeros.index_add(0, self.get_buffer("rows"), self.D)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._add(base(x), x)

    def update(self, x: Tensor) -> Tensor:
        return self._add(x.new_zeros(*x.shape[:-1], self.site.out_features), x)

    def _add(self, y: Tensor, x: Tensor) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        return add_at(y, F.linear(x.to(dtype), self.D.to(dtype)).to(y.dtype), self.get_buffer("rows"))

    def factors(self, start: Additive | None = None) -> Factors:
        assert start is None, "no init takes a start off the base for this method"
        rows = self.get_buffer("rows")
        columns = torch.arange(len(rows), device=rows.device)
        P = self.D.new_zeros(self.site.out_features, len(rows))
        P[rows.long(), columns] = 1
        return self.D.detach().float(), P

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return row_count(config, site) * site.in_features


def row_count(config: Any, site: Site) -> int:
    """How many rows of a site train."""
    return int(site.out_features * config.percent / 100)
