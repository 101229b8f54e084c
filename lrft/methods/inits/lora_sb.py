"""LoRA-SB: start a frozen frame and its core from the first step of full fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.methods.inits._alternate import check_rank
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, Field, MethodConfig, SVDIterations


@INITS.register
class LoRASB(Init):
    """LoRA Silver Bullet: a frozen frame and its core start as the best rank-r part of Adam's first step.

        M  = -eta sign(sum G) = U S V^T
        A  = V_r^T,  B = U_r,  R = diag(S_r) / s
        W' = W + s B R A = W + U_r S_r V_r^T

    with G = dL/dW, summed over `batches` micro-batches; eta = `eta`, r the rank, s the adapter's scale. With `niter`
    the SVD is randomised, with so many subspace iterations; without it, exact up to 2,048 rows or columns. A and B are
    orthonormal, so the gradient of R, s B^T (dL/dW) A^T, is that of the full weight projected on their frame.

    Shapes: M (out, in), A (r, in) and B (out, r), frozen, R (r, r). W' is not W at step 0: the first step is taken
    already.
    Trains: the core R alone, r^2 numbers per site. The base gives up nothing.
    Source: Ponkshe et al., "Initialization using Update Approximation is a Silver Bullet", 2024, arXiv 2411.19557, and
    the authors' code, whose eta is lr / (warm-up ratio * steps) with the steps counted in calibration batches: 3e-7 in
    their arithmetic runs (lr 1e-4, warm-up 0.02, 50,000 rows by 3), which is the default here.
    Departures: R is divided by s, which the authors force to 1 (alpha = rank); the SVD is exact and in float32, where
    theirs is randomised, without oversampling, and its factors are rounded to bfloat16.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"core_matrix", "backward"}
    directions = 1
    needs = ("grad",)

    config: Config

    class Config(MethodConfig):
        eta: float = Field(
            3e-7, gt=0, description="size of the first step: the optimizer's lr / number of warm-up steps"
        )
        niter: SVDIterations = SVD_ITERATIONS
        batches: int = Field(50, gt=0, description="training micro-batches the gradient is summed over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B, R = (adapter.get_parameter(name) for name in "ABR")
        rank = len(R)
        check_rank(rank, weight.shape)
        step = -self.config.eta * signal["grad"].to(weight.device).sign()
        if not step.any():
            raise ValueError("the gradient is zero over the calibration batches; use more of them")
        U, S, Vh = truncated_svd(step, rank, self.config.niter, extra=rank)
        A.copy_(Vh)
        B.copy_(U)
        R.copy_(torch.diag(S / adapter.scaling))
