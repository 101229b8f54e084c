"""DoRA: direction and magnitude of every output neuron, adapted apart."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch, PeftForm, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.peft import LORA_NAMES
from lrft.methods.adapters._decomposed import TINY, Decomposed
from lrft.methods.adapters.lora import LoRA
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, Field, Problem, RecipeView
from lrft.registry.json import Json


def dora_form_keys(config: DoRA.Config, with_start: bool) -> dict[str, Json]:
    """LoRA's keys and one more."""
    assert LoRA.peft is not None
    return {**LoRA.peft.keys(config, with_start), "use_dora": True}


def dora_form_settings(keys: Mapping[str, Any], site: str) -> dict[str, Json] | None:
    """The settings at a site of what PEFT wrote, unless it is another method."""
    plain = {key: value for key, value in keys.items() if key != "use_dora"}
    return LoRA.peft.read(plain, site) if keys.get("use_dora") and LoRA.peft and LoRA.peft.read else None


@ADAPTERS.register
class DoRA(Decomposed, LoRA):
    """Weight-decomposed low-rank adaptation: direction and magnitude of every output neuron are adapted apart.

        V  = W + s B A,  n = row norms of V,  g = m / n
        W' = g * V
        y  = b + g * (x W^T + s (x A^T) B^T)
        y  = b + x W^T + (g - 1) * (d W^T) + g * s (d A^T) B^T,  d = drop(x)       in training with `dropout` > 0

    with s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), r = `rank`; n is held constant in the backward pass,
    so gradients reach A and B through V alone; both terms in d share one draw of the dropout; the bias b is never
    scaled. On a weight in half precision n is expanded, n_i^2 = |w_i|^2 + 2 s b_i . (A w_i) + s^2 b_i (A A^T) b_i^T
    with w_i and b_i the rows of W and B, and V is never formed. `rank_pattern` and `alpha_pattern` as in `lora`. At
    sites whose name ends in a pattern of `magnitude_only` (the paper's Table 6) there are no A and B, and V = W.

    Shapes: A (r, in) and B (out, r) = 0 as in `lora`; m (out) = row norms of V at step 0, those of W, so g = 1 and
    W' = W at step 0; n, g (out).
    Trains: r (in + out) + out numbers per site, out at those of `magnitude_only`.
    Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv 2402.09353, and the authors' code.
    Departures: none in the function; "column-wise" in the paper is per output neuron in the (out, in) layout. Norms
    that have a gradient (`dora_simple: false` of the authors' code, not its default) are left out.
    """

    aliases = {
        "weight_decomposed_lora": "adapter: dora",
        "qdora": "quantization: nf4\nadapter: dora",
    }
    provides = {"adapters", "mergeable", "low_rank", "trained_pair", "decomposed", "factor_product"}
    roles = {"A": "lora_A", "B": "lora_B", "m": "magnitude"}
    peft = PeftForm(
        dora_form_keys, names={**LORA_NAMES, "m": "lora_magnitude_vector"}, read=dora_form_settings
    )

    config: Config

    class Config(LoRA.Config):
        magnitude_only: Annotated[list[str], ADDED] = Field(
            default_factory=list,
            description="sites whose name ends in one of these patterns train their magnitude alone",
        )

        def site_patterns(self) -> dict[str, list[str]]:
            """Those of `lora`, and the patterns of `magnitude_only`."""
            return {**super().site_patterns(), "magnitude_only": self.magnitude_only}

        def has_direction(self, name: str) -> bool:
            """Whether A and B train at a site."""
            return not any(fnmatch.fnmatchcase(f".{name}", f"*.{pattern}") for pattern in self.magnitude_only)

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A start of factors that are not everywhere."""
            init = recipe.declared("init")
            if self.magnitude_only and init is not None and init.name != "default":
                message = f"init {init.name} sets A and B, which these sites do not have; write init: default, or []"
                yield Problem("adapter.magnitude_only", message)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> Adapter:
        return cls(config, site) if config.has_direction(site.name) else Magnitude(config, site)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.decompose()

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return site.out_features + (LoRA.count(config, site) if config.has_direction(site.name) else 0)


def magnitude_form_tensors(adapter: Magnitude, start: Adapter | None) -> dict[str, Tensor]:
    """PEFT has no site without factors: two that are 0 are the same function."""
    rank, site = adapter.config.rank, adapter.site
    zeros = torch.zeros(rank, site.in_features), torch.zeros(site.out_features, rank)
    return {"A": zeros[0], "B": zeros[1], "m": adapter.m.detach()}


class Magnitude(Adapter):
    """A site of `dora` whose direction is the base's: y = b + g * (x W^T), g = m / n, n the row norms of W."""

    name = "dora"
    provides = {"adapters", "mergeable"}
    roles = {"m": "magnitude"}
    peft = PeftForm(
        dora_form_keys, magnitude_form_tensors, names={**LORA_NAMES, "m": "lora_magnitude_vector"}
    )

    config: DoRA.Config

    def __init__(self, config: DoRA.Config, site: Site) -> None:
        super().__init__(config, site)
        self.m = nn.Parameter(torch.ones(site.out_features))
        self.register_buffer("norms", torch.ones(site.out_features), persistent=False)
        self.register_buffer("down", torch.empty(0, site.in_features), persistent=False)
        self.register_buffer("up", torch.empty(site.out_features, 0), persistent=False)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        self.norms = weight.float().norm(dim=1)
        self.m.copy_(self.norms)

    def reset(self) -> None:
        with torch.no_grad():
            self.m.copy_(self.norms)

    def delta_weight(self, weight: Tensor) -> Tensor:
        scale = self.m / self.get_buffer("norms").clamp_min(TINY)
        return ((scale[:, None] - 1) * weight.float()).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        gain = self.m / self.get_buffer("norms").clamp_min(TINY)
        branch = Branch(
            self.get_buffer("down"), self.get_buffer("up"), gain=gain, dropout=self.config.dropout
        )
        return branch_linear(x, base, branch, dtype=self.compute_dtype, training=self.training)
