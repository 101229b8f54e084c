"""LoftQ: start from what rounding the weight has lost."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter, Factors
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.methods.inits._alternate import leading_factors, set_factors, stored_without
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, Field, MethodConfig, SVDIterations


@INITS.register
class LoftQ(Init):
    """LoRA-fine-tuning-aware quantization: the factors start from what rounding the weight has lost.

        L_0 = 0
        Q_t = q(W - L_{t-1}),  L_t = U_r S_r V_r^T of W - Q_t = U S V^T,      t = 1 ... T
        A   = sqrt(S_r / s) V_r^T,  B = U_r sqrt(S_r / s),  so s B A = L_T
        base: Q_T

    with T = `iterations`, q the rounding of the recipe's `quantization`, r the rank, s the adapter's scale. With
    `niter` the SVD is randomised, with so many subspace iterations; without it, exact up to 2,048 rows or columns.

    Shapes: A (r, in), B (out, r). At step 0 W' = Q_T + s B A, nearer to W than q(W) is: |W - Q_T - L_T| is what the
    singular values after the r-th of W - Q_T leave.
    Trains: what the adapter trains. The base gives up L_{T-1}, which is kept in the checkpoint, so that Q_T can be made
    again.
    Source: Li et al., "LoftQ", 2023, arXiv 2310.08659, and the authors' code (`iterations` 5 in its README, 1 in its
    script and in PEFT); theirs stores without `quantization.double_quant`.
    Departures: the factors are divided by sqrt(s), without which the start holds for alpha = rank alone; the authors'
    script leaves them as they are. The SVD follows the rounding, as in the paper, so there is no `residual` to choose.
    """

    requires = {"low_rank", "linear_delta", "undropped", "rounded_base"}
    residual = True
    directions = 1

    config: Config

    class Config(MethodConfig):
        iterations: int = Field(5, gt=0, description="rounds of rounding and SVD (T)")
        niter: SVDIterations = SVD_ITERATIONS

    @torch.no_grad()
    def apply(
        self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer
    ) -> Factors:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        factors: Factors = (torch.zeros_like(A.data), torch.zeros_like(B.data))
        for _ in range(self.config.iterations):
            taken = factors
            lost = weight.float() - stored_without(weight, taken, quantize)
            if not lost.any():
                raise ValueError(
                    "the storage loses nothing of the weight, so there is no error to start from; "
                    "choose a quantization other than none, or another init"
                )
            factors = leading_factors(lost, A.shape[0], self.config.niter, extra=A.shape[0])
        set_factors(A, B, factors, adapter.scaling)
        return taken
