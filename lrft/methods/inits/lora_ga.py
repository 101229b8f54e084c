"""LoRA-GA: start along the gradient, so that the first step is full fine-tuning's."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import ADDED, Field, Literal, ResidualConfig


@INITS.register
class LoRAGA(Init):
    """Low-rank adaptation with gradient approximation: the first step is made that of full fine-tuning.

        G = dL/dW averaged over micro-batches = U S V^T
        A = f V[:, a]^T,  B = f U[:, b]
        base: W - s B A

    with G averaged over `batches` micro-batches, its SVD randomised over 4 r directions with `niter` subspace
    iterations, S not used; r the rank, s the adapter's scale. Which r singular vectors (counted from 1) A and B take is
    `direction`, how long they are is `scale`:

        direction: ArB2r      a = 1 ... r             b = r + 1 ... 2 r
        direction: A2rBr      a = r + 1 ... 2 r       b = 1 ... r
        direction: ArBr       a = 2, 4, ..., 2 r      b = 1, 3, ..., 2 r - 1
        direction: random     a, b = two disjoint random halves of 1 ... 2 r
        scale: stable         f = out^(1/4) / sqrt(gamma)
        scale: gd             f = 1 / s
        scale: unit           f = 1
        scale: weightS        f = mean over i <= r of sqrt(sigma_i / s), sigma the singular values of W

    with gamma = `gamma`; sigma from a randomised SVD of 4 r directions. With `norm_clip: true` f is divided by
    sqrt(max |s B A| / max |W|), of entries, where that is more than 1. With `residual: rewrite` the base stores
    W - s B A; with `residual: anchor` it keeps W and the frozen start is subtracted beside it.

    Shapes: G (out, in), A (r, in), B (out, r). W' = W at step 0 up to rounding.
    Trains: what the adapter trains. The base gives up s B A.
    Source: Wang et al., "LoRA-GA", 2024, arXiv 2407.05000, and the authors' code, whose `scale: stable` uses `out` for
    both factors. PEFT's option of this name scales by singular values and differs.
    Departures: G is taken at the unquantized weight and s B A subtracted from it; on quantized bases the default is
    `residual: anchor`.
    """

    requires = {"low_rank", "linear_delta", "undropped", "backward"}
    residual = True
    directions = 2
    needs = ("grad",)

    config: Config

    class Config(ResidualConfig):
        direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = "ArB2r"
        scale: Literal["stable", "gd", "unit", "weightS"] = "stable"
        gamma: float = Field(16.0, gt=0, description="of `stable`; the authors' LLaMA command line has 64")
        niter: int = Field(4, ge=0, description="subspace iterations of the randomised SVD")
        batches: int = Field(8, gt=0, description="training micro-batches the gradient is averaged over")
        norm_clip: Annotated[bool, ADDED] = Field(
            False, description="shorten a start with an entry larger than any of the weight"
        )

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
        if self.config.norm_clip:
            excess = adapter.scaling * (B @ A).abs().max() / weight.float().abs().max()
            if excess > 1:
                A.div_(excess.sqrt())
                B.div_(excess.sqrt())

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
