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
    """Orthonormal low-rank adaptation.

    W = Q R (reduced, no pivoting); B = Q[:, :r] (out, r), A = R[:r, :] (r, in); the base holds W - s B A
    Trains what the adapter trains; W' = W at step 0 up to rounding. Only B is orthonormal.
    Source: Büyükakyüz, "OLoRA", 2024, arXiv 2406.01775, as in PEFT's code (no 1/s inside A or B).
    Departures: the true weight is factored, also for quantized bases, where PEFT factors the decoded one; there the
    default is `residual: anchor`.
    """

    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    class Config(ResidualConfig):
        pass

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        Q, R = torch.linalg.qr(weight.float())
        B.copy_(Q[:, : A.shape[0]])
        A.copy_(R[: A.shape[0]])
