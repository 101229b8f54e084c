"""FILA: start from what the data to forget needs of the weight and the data to retain does not."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import SVD_ITERATIONS, Field, ResidualConfig, Source, SVDIterations

EPSILON = 1e-5


@INITS.register
class FILA(Init):
    """Fisher-initialisation for unlearning: the start is what data to forget need of W and data to retain do not.

        F   = sum over micro-batches of n g * g / sum of n,  g = dL/dW of the mean loss over the n targets
        R   = F_forget / (F_retain + 1e-5),  d_i = sqrt(sum_j R_ij)
        diag(d) W = U S V^T
        A   = sqrt(S_r / s) V_r^T,  B = diag(1 / (d + 1e-5)) U_r sqrt(S_r / s)
        base: W - s B A

    with `forget` and `retain` the two sources of rows, in `data.format`; F is measured for each over `batches`
    micro-batches; r the rank, s the adapter's scale. s B A minimises ||diag(d) (W - s B A)||_F among matrices of rank
    r. With `niter` the SVD is randomised, with so many subspace iterations; without it, exact up to 2,048 rows or
    columns. With `residual: rewrite` the base stores W - s B A; with `residual: anchor` it keeps W and the frozen start
    is subtracted beside it.

    Shapes: F, R (out, in), d (out), A (r, in), B (out, r). W' = W at step 0 up to rounding.
    Trains: what the adapter trains. The base gives up s B A.
    Source: Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025, and the
    authors' code (alpha = 2 r, all linear layers, lr 1e-4 on LLaMA-2-7B).
    Departures: the SVD is exact; with `niter` it is randomised over 2 r directions, the authors' has r and niter 2.
    What is saved is the adapter and its start, where the authors' script saves the residual base alone. On quantized
    bases the default is `residual: anchor`. Dropout is refused, which would disturb the start; theirs is 0.05.
    """

    requires = {"low_rank", "linear_delta", "undropped", "backward"}
    residual = True
    directions = 1
    needs = ("batch_fisher@forget", "batch_fisher@retain")
    objective = "cross_entropy"

    config: Config

    class Config(ResidualConfig):
        forget: Source = Field(description="rows to forget, in data.format")
        retain: Source = Field(description="rows to retain, in data.format")
        batches: int = Field(32, gt=0, description="micro-batches of each that gradients are taken over")
        niter: SVDIterations = SVD_ITERATIONS

    def sources(self) -> dict[str, Source]:
        return {"forget": self.config.forget, "retain": self.config.retain}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        r = A.shape[0]
        if r > min(weight.shape):
            raise ValueError(f"{tuple(weight.shape)} has fewer than {r} singular values; use a lower rank")
        forget, retain = (signal[name].to(weight.device) for name in self.needs)
        d = row_weights(forget, retain)
        U, S, Vh = truncated_svd(d[:, None] * weight.float(), r, self.config.niter, extra=r)
        root = (S / adapter.scaling).sqrt()
        A.copy_(root[:, None] * Vh)
        B.copy_(U * root / (d + EPSILON)[:, None])


def row_weights(forget: Tensor, retain: Tensor) -> Tensor:
    """How much each output row matters to one data set relative to the other, 2 x (out, in) -> (out,)."""
    return (forget / (retain + EPSILON)).sum(1).sqrt()
