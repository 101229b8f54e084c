"""Gaussian LoRA start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS


@INITS.register
class Gaussian(Init):
    """Gaussian start of A, with B = 0: the start in the text of the LoRA paper.

        A ~ N(0, 1 / r^2),  B = 0

    with r the adapter's rank: the standard deviation is 1 / r, independent of in.

    Shapes: A (r, in), B (out, r); W' = W at step 0.
    Trains: what the adapter trains. The base gives up nothing.
    Source: Hu et al., 2021, arXiv 2106.09685 (the paper's text); scale as in PEFT's "gaussian".
    Departures: the paper gives no standard deviation.
    """

    aliases = {
        "normal random_normal": "init: gaussian",
    }
    provides = {"kept_base"}
    requires = {"low_rank"}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A = adapter.get_parameter("A")
        nn.init.normal_(A, std=1 / A.shape[0])
