"""HiRA: a low-rank matrix that multiplies the weight entry by entry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrft.core.adapter import PeftForm
from lrft.methods.adapters._pair import Pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


def hira_form_keys(config: Any, with_start: bool) -> dict[str, Any]:
    """PEFT's keys of the method."""
    return {"peft_type": "HIRA", "r": config.rank}


@ADAPTERS.register
class HiRA(Pair):
    """Hadamard high-rank adaptation: a low-rank matrix multiplies the weight entry by entry.

        W' = W + W * (B A)      * entry by entry
        y  = x W'^T + b

    with r = `rank`. The change has a rank of up to r times that of W, and is 0 where W is.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W at step 0.
    Trains: r (in + out) numbers per site. The change is formed from the decoded weight at every step and once more in
    the backward pass, and is not kept.
    Source: Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", ICLR
    2025, and the authors' code (hqsiswiliam/hira); formula, start and missing scale are those of PEFT's layer too,
    checked on the same numbers.
    Departures: no dropout, which PEFT's layer offers on the input of the change; the authors' declares it and does
    not use it, nor its scale.
    Advice: learning rates some ten times those of LoRA, as entries of W are small (PEFT's own run: 4.5e-3).
    """

    provides = {"adapters", "mergeable", "factor_product"}
    peft = PeftForm(hira_form_keys, names={"A": "hira_A", "B": "hira_B"})

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (weight.float() * (self.B @ self.A)).to(weight.dtype)
