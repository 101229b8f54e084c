"""QPiSSA: PiSSA whose residual is rounded again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.methods.inits._alternate import leading_factors, set_factors, stored_without
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, Field, Literal, MethodConfig, SVDIterations


@INITS.register
class QPiSSA(Init):
    """Principal singular values and vectors, fitted to the rounding of the residual.

        R_0 = W
        L_t = U_r S_r V_r^T of R_{t-1} = U S V^T,  Q_t = q(W - L_t),  R_t = W - Q_t,      t = 1 ... T
        A   = sqrt(S_r / s) V_r^T,  B = U_r sqrt(S_r / s),  so s B A = L_T
        base: Q_T

    with T = `iterations`, q the rounding of the recipe's `quantization`, r the rank, s the adapter's scale. With
    `niter` the SVD is randomised, with so many subspace iterations; without it, exact up to 2,048 rows or columns.
    Every round ends with the rounding (those of `loftq` end with the SVD), so the base holds W - s B A, rounded:
    `residual` has the one value `rewrite`.

    Shapes: A (r, in), B (out, r). At step 0 W' = Q_T + s B A ~ W. T = 1 is PiSSA with a rounded residual; on a dense
    base every T is PiSSA.
    Trains: what the adapter trains. The base gives up s B A and rounds what is left.
    Source: Meng et al., "PiSSA", 2024, arXiv 2404.02948, and the authors' code (5 rounds for LLaMA-2-7B, exact SVD, NF4
    without `quantization.double_quant`, alpha = rank).
    Departures: the factors are divided by sqrt(s), which is 1 in the authors' runs.
    """

    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    config: Config

    class Config(MethodConfig):
        iterations: int = Field(5, gt=0, description="rounds of SVD and rounding (T)")
        niter: SVDIterations = SVD_ITERATIONS
        residual: Literal["rewrite"] = Field(
            "rewrite", description="the base stores W - delta_0, whose rounding the start was fitted to"
        )

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        left = weight.float()
        for done in range(self.config.iterations):
            factors = leading_factors(left, A.shape[0], self.config.niter, extra=A.shape[0])
            if done + 1 < self.config.iterations:  # the last rounding is the base's own
                left = weight.float() - stored_without(weight, factors, quantize)
                if not left.any():
                    break
        set_factors(A, B, factors, adapter.scaling)
