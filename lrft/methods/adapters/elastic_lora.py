"""Elastic LoRA: a LoRA that is used at any of its ranks, with one scale."""

from __future__ import annotations

import torch

from lrft.core.adapter import Branch
from lrft.core.elastic import ELASTIC_FORM, Elastic
from lrft.core.params import Site
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class ElasticLoRA(Elastic):
    """LoRA whose rank components can be hidden, so that one adapter holds one of every lower rank.

        y  = x W^T + b + s ((drop(x) A^T) * m) B^T
        W' = W + s B diag(m) A

    with r = `rank`, s = `alpha` / r whatever is shown, m the buffer `mask` (1 for a component that is shown, 0 for a
    hidden one), drop dropout of probability `dropout`. What is shown is for the allocation to say (`allocate: nls`);
    without one all of it is, and this is `lora`.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W at step 0.
    Trains: r (in + out) numbers per site. `mask` (r numbers) is saved. Exported as a plain LoRA of the components that
    are shown, of their number as rank and with s multiplied into B.
    Source: Munoz et al., "Shears: Unstructured Sparsity with Neural Low-rank Adapter Search", NAACL 2024, industry
    track, arXiv 2404.10934, and the authors' code (IntelLabs/Hardware-Aware-Automated-Machine-Learning), from which
    `rank` 32 and `alpha` 64 are.
    Departures: none in the function; their script that takes a part out copies rank and scale of the whole, here the
    part keeps the scale it was trained with.
    """

    provides = {"adapters", "mergeable", "linear_delta", "elastic", "sub_ranks"}
    roles = {"A": "lora_A", "B": "lora_B"}
    peft = ELASTIC_FORM

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536, description="the highest rank, which decides the scale")
        alpha: float = Field(64.0, gt=0, le=1_000_000)
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.A, self.B = empty_pair(config.rank, site)
        self.register_buffer("mask", torch.ones(config.rank))
        self.reset()

    def reset(self) -> None:
        """Draw A anew and set B to 0; what is shown stays as it is."""
        start_pair(self.A, self.B)

    def branch(self) -> Branch:
        return Branch(self.mask[:, None] * self.A, self.B, self.scaling, dropout=self.config.dropout)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))
