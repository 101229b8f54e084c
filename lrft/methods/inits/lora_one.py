"""LoRA-One: start where one step of full fine-tuning would lead."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.methods.inits._alternate import leading_factors
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, Field, MethodConfig, SVDIterations

COLUMNS = 512  # of the authors' randomised SVD


@INITS.register
class LoRAOne(Init):
    """LoRA from one step of the full gradient: W' starts one low-rank step of full fine-tuning away from W.

        G  = dL/dW averaged over micro-batches,  -G = U S V^T
        A  = sqrt(S_r / (S_1 gamma)) V_r^T,  B = U_r sqrt(S_r / (S_1 gamma))
        W' = W + s B A = W - (s / gamma) G_r / S_1

    with G averaged over `batches` micro-batches, G_r its best rank-r part, S_1 its largest singular value, gamma =
    `gamma`, r the rank, s the adapter's scale. With `niter` the SVD is randomised, with so many subspace iterations;
    without it, exact up to 2,048 rows or columns.

    Shapes: G (out, in), A (r, in), B (out, r). W' is not W at step 0: a step of spectral norm s / gamma down the
    gradient is taken already.
    Trains: what the adapter trains. The base gives up nothing, and the export is a plain rank-r LoRA.
    Source: Zhang et al., "LoRA-One", 2025, arXiv 2502.01235, and the authors' code (rsLoRA, rank 8, alpha 16, 8
    micro-batches of one sequence; its README leaves out the roots and the division by S_1).
    Departures: the SVD is exact, where the authors' is randomised with 512 columns and 16 subspace iterations
    (`niter`). The variant with a preconditioner is not included.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"low_rank", "linear_delta", "backward"}
    directions = 1
    needs = ("grad",)

    config: Config

    class Config(MethodConfig):
        gamma: float = Field(128.0, gt=0, description="the start is a step of spectral norm s / gamma")
        niter: SVDIterations = SVD_ITERATIONS
        batches: int = Field(8, gt=0, description="training micro-batches the gradient is averaged over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        rank = A.shape[0]
        descent = -signal["grad"].to(weight.device, torch.float32)
        down, up = leading_factors(descent, rank, self.config.niter, extra=max(0, COLUMNS - rank))
        largest = down[0].norm() ** 2  # each factor holds the root of a singular value
        if not largest > 0:
            raise ValueError("the gradient is zero over the calibration batches; use more of them")
        root = (largest * self.config.gamma).sqrt()
        A.copy_(down / root)
        B.copy_(up / root)
