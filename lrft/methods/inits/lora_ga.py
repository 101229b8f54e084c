"""LoRA-GA: start along the gradient, so that the first step is full fine-tuning's."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import Field, Literal, ResidualConfig


@INITS.register
class LoRAGA(Init):
    """Low-rank adaptation with gradient approximation.

    G = dL/dW averaged over micro-batches = U S V^T (randomised, 4r directions); S is not used.
    ArB2r: A = V[:, :r]^T (r, in), B = U[:, r:2r] (out, r); A2rBr: the other way round; ArBr: odd and even of the first
    2r; random: two disjoint subsets of the first 2r.
    stable: both times out^(1/4) / sqrt(gamma); gd: both divided by s; unit: as they are; weightS: both times the mean
    of sqrt(sigma_i(W) / s), i <= r, of a randomised SVD of 4r directions. The base holds W - s B A.
    Trains what the adapter trains; W' = W at step 0 up to rounding.
    Source: Wang et al., "LoRA-GA", 2024, arXiv 2407.05000, and the authors' code, whose `stable` uses `out` for both
    factors. PEFT's option of this name scales by singular values and differs.
    Departures: G is taken at the unquantized weight and subtracted from it; quantized: `residual: anchor`.
    """

    requires = {"low_rank", "linear_delta", "undropped", "backward"}
    residual = True
    directions = 2
    needs = ("grad",)

    class Config(ResidualConfig):
        direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = "ArB2r"
        scale: Literal["stable", "gd", "unit", "weightS"] = "stable"
        gamma: float = Field(16.0, gt=0, description="of `stable`; the authors' LLaMA command line has 64")
        niter: int = Field(4, ge=0, description="subspace iterations of the randomised SVD")
        batches: int = Field(8, gt=0, description="training micro-batches the gradient is averaged over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        r = A.shape[0]
        if 2 * r > min(weight.shape):
            raise ValueError(
                f"needs 2 r directions of the gradient, and {tuple(weight.shape)} has fewer than {2 * r}"
            )
        U, _, Vh = truncated_svd(signal["grad"].to(weight.device), 4 * r, self.config.niter)
        for_a, for_b = self._directions(r)
        factor = self._factor(adapter, weight, r)
        A.copy_(factor * Vh[for_a])
        B.copy_(factor * U[:, for_b])

    def _directions(self, r: int) -> tuple[Tensor, Tensor]:
        """Indices into the leading 2 r singular directions, disjoint, for A and for B."""
        first, second = torch.arange(r), torch.arange(r, 2 * r)
        if self.config.direction == "ArB2r":
            return first, second
        if self.config.direction == "A2rBr":
            return second, first
        if self.config.direction == "ArBr":
            return torch.arange(1, 2 * r, 2), torch.arange(0, 2 * r, 2)
        drawn = torch.randperm(2 * r)
        return drawn[:r], drawn[r:]

    def _factor(self, adapter: Adapter, weight: Tensor, r: int) -> float:
        if self.config.scale == "stable":
            return float(weight.shape[0] ** 0.25 / self.config.gamma**0.5)
        if self.config.scale == "gd":
            return 1 / float(adapter.scaling)
        if self.config.scale == "weightS":
            _, S, _ = truncated_svd(weight, r, self.config.niter, extra=3 * r)
            return float((S / adapter.scaling).sqrt().mean())
        return 1.0
