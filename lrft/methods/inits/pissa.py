"""PiSSA: train the principal part of the weight, freeze the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import Field, ResidualConfig


@INITS.register
class PiSSA(Init):
    """Principal singular values and vectors.

    W = U S V^T; S' = S_r / s; A = sqrt(S') V_r^T (r, in), B = U_r sqrt(S') (out, r); the base holds W - s B A
    Trains what the adapter trains; W' = W at step 0 up to rounding, with delta_0 = the best rank-r part of W.
    Source: Meng et al., "PiSSA", 2024, arXiv 2404.02948, and the authors' code.
    Departures: on quantized bases the default is `residual: anchor` (the base stays q(W)); `rewrite` is the paper's.
    The randomised SVD (`niter`) is the authors' fast mode, without oversampling.
    """

    aliases = {
        "pissa_iter": "init: {method: pissa, niter: 16}",
    }
    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    class Config(ResidualConfig):
        niter: int | None = Field(
            None, ge=0, description="subspace iterations of a fast randomised SVD; null for the exact one"
        )

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        U, S, Vh = truncated_svd(weight, A.shape[0], self.config.niter)
        root = (S / adapter.scaling).sqrt()
        A.copy_(root[:, None] * Vh)
        B.copy_(U * root)
