"""SHiRA: a few entries of the weight, drawn once, train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, PeftForm
from lrft.core.params import Site
from lrft.ops.entries import filled
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


def shira_form_keys(config: Any, with_start: bool) -> dict[str, Any]:
    """PEFT's keys of the method."""
    return {"peft_type": "SHIRA", "r": config.rank, "random_seed": config.mask_seed}


def shira_form_tensors(adapter: Any, start: Any) -> dict[str, Tensor]:
    """Values, and row and column of each."""
    assert start is None, "no init takes a start off the base for this method"
    places, width = adapter.get_buffer("places"), adapter.site.in_features
    return {"values": adapter.values, "places": torch.stack([places // width, places % width]).int()}


@ADAPTERS.register
class SHiRA(Additive):
    """Sparse high-rank adaptation: as many entries of the weight train as a LoRA has, wherever they were drawn.

        W' = W + S
        y  = x W'^T + b

    S is 0 outside k = r (in + out) places, r = `rank`, drawn at random once and fixed. With `mask_seed` the places are
    a function of it and of the shape alone, and those that PEFT draws; without it they come from the run's own seed,
    and sites of one shape differ.

    Shapes: the values of S (k) = 0, so W' = W at step 0.
    Trains: r (in + out) numbers per site; S can have full rank. Places are saved beside the values, as 32-bit numbers
    where in out allows it, 64-bit ones beyond.
    Source: Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024, with its random mask, as in PEFT's layer,
    checked on the same numbers; the paper was not read.
    Departures: none in the function. Masks by magnitude, gradient or structure are left out.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"values": "sparse"}
    peft = PeftForm(
        shira_form_keys,
        shira_form_tensors,
        names={"values": "shira_weight", "places": "shira_indices"},
        transposed=False,
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536, description="of the LoRA that has as many numbers")
        mask_seed: int | None = Field(None, ge=0, description="seed of the places; by default the run's")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        total, many = site.in_features * site.out_features, self.count(config, site)
        if many > total:
            most = total // (site.in_features + site.out_features)
            raise ValueError(f"rank {config.rank} asks for {many} entries of {total}; use at most {most}")
        generator = None
        if config.mask_seed is not None:
            generator = torch.Generator().manual_seed(config.mask_seed)
        places = torch.randperm(total, generator=generator)[:many].sort().values
        self.register_buffer("places", places.to(torch.int32 if total < 2**31 else torch.int64))
        self.values = nn.Parameter(torch.zeros(many))

    def reset(self) -> None:
        nn.init.zeros_(self.values)

    def change(self) -> Tensor:
        shape = self.site.out_features, self.site.in_features
        return filled(self.values, self.get_buffer("places"), shape)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))
