"""OLoRA: start from the QR decomposition of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS
from lrft.registry.config import ResidualConfig


@INITS.register
class OLoRA(Init):
    """Orthonormal low-rank adaptation: the factors start from the QR decomposition of the weight.

        W = Q R      reduced, no pivoting
        B = Q[:, :r],  A = R[:r, :]
        base: W - s B A

    with r the rank, s the adapter's scale. Only B is orthonormal. With `residual: rewrite` the base stores W - s B A;
    with `residual: anchor` it keeps W and the frozen start is subtracted beside it.

    Shapes: A (r, in), B (out, r). W' = W at step 0 up to rounding.
    Trains: what the adapter trains. The base gives up s B A.
    Source: Büyükakyüz, "OLoRA", 2024, arXiv 2406.01775, as in PEFT's code (no 1/s inside A or B).
    Departures: the true weight is factored, also for quantized bases, where PEFT factors the decoded one; there the
    default is `residual: anchor`.
    """

    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    config: Config

    class Config(ResidualConfig):
        pass

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        Q, R = torch.linalg.qr(weight.float())
        B.copy_(Q[:, : A.shape[0]])
        A.copy_(R[: A.shape[0]])
