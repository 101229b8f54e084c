"""Atomic feature mimicking: layers as products of two factors, cut where their outputs vary least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters.pela import PELA
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView


@ADAPTERS.register
class AFM(PELA):
    """Unified low-rank compression: a layer keeps the principal components of what it gives, not of its weight.

        y  = (x A^T) B^T + c + b
        B = U_r,  A = U_r^T W,  c = (1 - U_r U_r^T) W m  at step 0  (`init: afm`)

    with U_r the r leading principal axes of the layer's outputs W x + b over training rows, m the mean of its inputs, r
    as in `pela`. Then y is U_r U_r^T (W x + b) + (1 - U_r U_r^T) times the mean output: what is cut off is replaced by
    its mean. With `shift: false` there is no c, and the axes are those of the second moment. W takes no part in y.

    Shapes: A (r, in), B (out, r), c (out). At step 0 the output is the nearest one of rank r over those rows, and not
    W x + b.
    Trains: r (in + out) + out numbers per site, without out with `shift: false`. W stays in memory, as the base.
    Source: Yu et al., "Unified Low-rank Compression Framework for Click-through Rate Prediction", KDD 2024, arXiv
    2405.18146, and the authors' code (afm_mlp.py): covariance, axes, factors and offset are its own. After Yu and Wu,
    "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!", AAAI 2023.
    Departures: made for click-through models, carried to the linear layers of a language model; embedding tables are
    left out. The rank is one share of every layer; the code takes it as given. `lrft merge` writes B A in one matrix,
    or with `--factors` as two layers, and c into the layer's bias.
    Advice: most language models have no biases to merge c into: write `shift: false` for them.
    """

    aliases = {
        "atomic_feature_mimicking": "adapter: afm\ninit: afm",
    }
    provides = {"adapters", "mergeable", "moved_start", "factor_product", "stands_for_weight", "feature_axes"}
    requires = {"one_stage"}
    roles = {"A": "lora_A", "B": "lora_B", "c": "vector"}

    config: Config

    class Config(PELA.Config):
        shift: bool = Field(
            True, description="keep the mean of what is cut off; a merge then needs a bias at every site"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A start from the weight, which is another method's."""
            yield from super().clashes(recipe)
            if recipe["init.method"] != "afm":
                message = "does not look at what layers give, as adapter: afm needs it; write init: afm"
                yield Problem("init.method", message)

    @classmethod
    def why_not_merged(cls, config: Config, site: Site) -> str:
        if not config.shift or site.has_bias:
            return ""
        return (
            f"afm gives {site.name} an offset, and the architecture has no bias there to merge it into; keep the "
            "adapter separate, or train with adapter.shift: false"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.shift:
            self.c = nn.Parameter(torch.zeros(site.out_features))

    def start(self, weight: Tensor) -> None:
        if not self.B.any():  # else the init has been here
            super().start(weight)

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        return self.c.float() if self.config.shift else None

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        y = super().forward(x, base)
        return y + self.c.to(y.dtype) if self.config.shift else y

    @staticmethod
    def count(config: Config, site: Site) -> int:  # type: ignore[override]
        return PELA.count(config, site) + config.shift * site.out_features
