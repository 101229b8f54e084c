"""DoRA: direction and magnitude of every output neuron, adapted apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrft.core.adapter import PeftForm
from lrft.core.params import Site
from lrft.core.peft import LORA_NAMES
from lrft.methods.adapters._decomposed import Decomposed
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import ADAPTERS
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
    with w_i and b_i the rows of W and B, and V is never formed. `rank_pattern` and `alpha_pattern` as in `lora`.

    Shapes: A (r, in) and B (out, r) = 0 as in `lora`; m (out) = row norms of V at step 0, those of W, so g = 1 and
    W' = W at step 0; n, g (out).
    Trains: r (in + out) + out numbers per site.
    Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv 2402.09353, and the authors' code.
    Departures: none in the function; "column-wise" in the paper is per output neuron in the (out, in) layout.
    """

    aliases = {
        "weight_decomposed_lora": "adapter: dora",
        "qdora": "quantization: nf4\nadapter: dora",
    }
    provides = {"adapters", "mergeable", "low_rank", "trained_pair"}
    roles = {"A": "lora_A", "B": "lora_B", "m": "magnitude"}
    peft = PeftForm(
        dora_form_keys, names={**LORA_NAMES, "m": "lora_magnitude_vector"}, read=dora_form_settings
    )

    config: Config

    class Config(LoRA.Config):
        pass

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.decompose()

    @staticmethod
    def count(config: LoRA.Config, site: Site) -> int:
        return LoRA.count(config, site) + site.out_features
