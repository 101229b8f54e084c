"""LoRA: a low-rank update beside the frozen weight."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.methods.adapters._given import read_keys
from lrft.methods.adapters._pair import Pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def lora_form_keys(config: LoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys; with a start the rank is twice as high, and alpha such that the scale stays."""
    grown = (math.sqrt(2) if config.rslora else 2) if with_start else 1
    rank = config.rank * (2 if with_start else 1)
    return lora_keys(rank, config.alpha * grown, config.dropout, config.rslora)


def lora_form_tensors(adapter: LoRA, start: LoRA | None) -> dict[str, Tensor]:
    """A and B of the change alone, the scale left out, since PEFT multiplies it in."""
    if start is None:
        return dict(adapter.state_dict())
    return dict(zip("AB", adapter.branch_since(start).pair(), strict=True))


def lora_form_settings(keys: Mapping[str, Any], site: str) -> dict[str, Json] | None:
    """The settings at a site of what PEFT wrote, unless it is another method."""
    return None if keys.get("use_dora") else read_keys(keys, site)


@ADAPTERS.register
class LoRA(Pair, LowRank):
    """Low-rank adaptation: a trained product of two thin factors beside the frozen weight.

        y  = x W^T + b + s (drop(x) A^T) B^T
        W' = W + s B A

    with r = `rank`, s = `alpha` / r, or `alpha` / sqrt(r) with `rslora: true` (rsLoRA). drop drops entries of x with
    probability `dropout`; it acts on the adapter's input alone, the base sees x undropped. Sites that read the same
    tensor (queries, keys and values of one attention) share one draw, as in the authors' merged layers. `rank_pattern`
    and `alpha_pattern` set `rank` and `alpha` at sites whose name ends in a pattern; the last match counts.

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
    provides = {"adapters", "mergeable", "low_rank", "linear_delta", "trained_pair", "factor_product"}
    peft = PeftForm(lora_form_keys, lora_form_tensors, read=lora_form_settings)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536)
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
        dropout: float = Field(0.0, ge=0, lt=1)
        rank_pattern: dict[str, Annotated[int, Field(gt=0, le=65_536)]] = Field(
            default_factory=dict,
            description="rank at sites whose name ends in the pattern; the last match counts",
        )
        alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(
            default_factory=dict,
            description="alpha at sites whose name ends in the pattern; the last match counts",
        )

        def site_patterns(self) -> dict[str, list[str]]:
            """The patterns of `rank_pattern` and `alpha_pattern`."""
            return {"rank_pattern": list(self.rank_pattern), "alpha_pattern": list(self.alpha_pattern)}

        def for_site(self, name: str) -> AdapterConfig:
            """The settings at one site, patterns resolved."""
            found: dict[str, float] = {}
            for key, patterns in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern)):
                for pattern, value in patterns.items():
                    if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}"):
                        found[key] = value
            return self.model_copy(update={**found, "rank_pattern": {}, "alpha_pattern": {}})

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)

    def branch(self) -> Branch:
        return Branch(self.A, self.B, self.scaling, dropout=self.config.dropout)
