"""SmoothQuant: how far the inputs of a layer reach, so that weights can take over what is hard to round in them."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig


@INITS.register
class SmoothQuant(Init):
    """The ranges of a layer's inputs are measured, by which the adapter divides them and multiplies the weight.

        a_j = max |x_j| over `batches` micro-batches of the training rows
        y   = (x / v) (W v)^T,  v_j = a_j^t / (max over rows of |W_ij|)^(1 - t)

    with t of the adapter, W its frozen weight.

    Shapes: a, v (in). But for what is rounded, the model at step 0 is the pretrained one.
    Trains: what the adapter trains. The base gives up nothing.
    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    ICML 2023, arXiv 2211.10438.
    Departures: v is of each layer, applied to its own input; the paper has one for layers that share an input, folded
    into the norm before them.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"smoothed"}
    needs = ("input_max",)

    config: Config

    class Config(MethodConfig):
        batches: int = Field(128, gt=0, description="training micro-batches the inputs are measured on")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        adapter.get_buffer("a").copy_(signal["input_max"])
