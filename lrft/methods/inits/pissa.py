"""PiSSA: train the principal part of the weight, freeze the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, ResidualConfig, SVDIterations


@INITS.register
class PiSSA(Init):
    """Principal singular values and vectors: the leading part of the weight trains, the rest is frozen.

        W = U S V^T
        A = sqrt(S_r / s) V_r^T,  B = U_r sqrt(S_r / s)
        base: W - s B A

    with U_r S_r V_r^T the best rank-r part of W, r the rank, s the adapter's scale. With `niter` the SVD is randomised,
    with so many subspace iterations and no oversampling; without it, exact up to 2,048 rows or columns. With `residual:
    rewrite` the base stores W - s B A; with `residual: anchor` it keeps W and the frozen start is subtracted beside it.

    Shapes: A (r, in), B (out, r). W' = W at step 0 up to rounding.
    Trains: what the adapter trains. The base gives up s B A, the best rank-r part of W.
    Source: Meng et al., "PiSSA", 2024, arXiv 2404.02948, and the authors' code; `niter` is their fast mode.
    Departures: on quantized bases the default is `residual: anchor` (the base stays q(W)); `residual: rewrite` is the
    paper's.
    """

    aliases = {
        "pissa_iter": "init: {method: pissa, niter: 16}",
    }
    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    config: Config

    class Config(ResidualConfig):
        niter: SVDIterations = SVD_ITERATIONS

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        U, S, Vh = truncated_svd(weight, A.shape[0], self.config.niter)
        root = (S / adapter.scaling).sqrt()
        A.copy_(root[:, None] * Vh)
        B.copy_(U * root)
