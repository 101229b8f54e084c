"""LoRA-XS: start the frozen frame from the leading singular vectors of the weight."""

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
class LoRAXSStart(Init):
    """The start of LoRA-XS as published: frozen frame from the SVD of W, core from noise.

        W  = U S V^T
        A  = S_r V_r^T,  B = U_r,  R ~ N(0, sigma^2)
        W' = W + s B R A

    with sigma = `sigma`, r the rank, s the adapter's scale. With `niter` the SVD is randomised, with so many subspace
    iterations; without it, exact up to 2,048 rows or columns.

    Shapes: A (r, in) and B (out, r), frozen, R (r, r). At step 0 W' is away from W by about sigma |W|.
    Trains: the core R alone, r^2 numbers per site. The base gives up nothing.
    Source: Bałazy et al., "LoRA-XS", 2024, arXiv 2405.17604, and the authors' code (sigma 1e-5).
    Departures: the SVD is exact and of the weight before it is quantized; the authors' is randomised (10 iterations).
    """

    provides = {"kept_base", "moved_start"}
    requires = {"core_matrix"}
    directions = 1

    config: Config

    class Config(MethodConfig):
        sigma: float = Field(1e-5, ge=0, description="standard deviation of the core")
        niter: SVDIterations = SVD_ITERATIONS

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B, R = (adapter.get_parameter(name) for name in "ABR")
        check_rank(len(R), weight.shape)
        U, S, Vh = truncated_svd(weight, len(R), self.config.niter, extra=len(R))
        A.copy_(S[:, None] * Vh)
        B.copy_(U)
        R.normal_(std=self.config.sigma)
