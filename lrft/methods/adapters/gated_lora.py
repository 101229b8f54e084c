"""Gated LoRA: a low-rank update whose components pass through gates that start open."""

from __future__ import annotations

import math

from torch import nn

from lrft.methods.adapters.svd_lora import SVDLoRA
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class GatedLoRA(SVDLoRA):
    """LoRA with a trained gate on every rank component, so that components can be shut by shrinking the gates.

        y  = x W^T + b + ((drop(x) A^T) * E) B^T
        W' = W + B diag(E) A

    with E the gates, one for each of the r = `rank` components, and no scale; drop is dropout of probability `dropout`.
    Whoever shrinks the gates is the allocation (`allocate: codyra`); a component with E = 0 adds nothing.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), E (r) ~ N(0, 1), B (out, r) = 0, so W' = W at step 0.
    Trains: r (in + out) + r numbers per site. The buffers `mask` and `gain` (r + 1 numbers, saved) and the export, as a
    plain LoRA of the components with E != 0, are those of `svd_lora`.
    Source: Lu et al., "Adaptive Rank, Reduced Forgetting: Knowledge Retention in Continual Learning Vision-Language
    Models with Dynamic Rank-Selective LoRA", 2024, arXiv 2412.01004, and the authors' code.
    Departures: none.
    """

    peft = SVDLoRA.peft

    config: Config  # type: ignore[assignment]  # fewer settings than the parent's

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536)
        dropout: float = Field(0.0, ge=0, lt=1)

    def reset(self) -> None:
        """Draw A and the gates anew and set B to 0."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.normal_(self.E)
        nn.init.zeros_(self.B)

    def scaling_at(self, rank: int) -> float:
        return 1.0
