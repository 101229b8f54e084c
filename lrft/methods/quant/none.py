"""No quantization: the weight as it was loaded."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig


@QUANTIZERS.register
class Dense(Encoded):
    """The weight in floating point, in the dtype it was loaded in.

        y = x W^T + b
        dx = dy W

    with W frozen. Reading and writing are exact.

    Shapes: W (out, in), in the dtype of the files.
    Bits: those of the dtype, 16 a weight in bfloat16.
    Source: none needed; this is the plain linear layer.
    Departures: none.
    """

    aliases = {
        "no off false null 16 32 16bit 32bit bf16 bfloat16 fp16 float16 fp32 float32 dense "
        "full_precision unquantized": "quantization: none",
    }
    provides = {"dense_base"}
    lighter = "nf4"
    movable = True
    dense: Tensor

    class Config(MethodConfig):
        pass

    def encode(self, weight: Tensor) -> None:
        self.register_buffer("dense", weight.contiguous())

    def move_to(self, place: Tensor) -> None:
        self.register_buffer("dense", place.copy_(self.dense))

    def weight(self) -> Tensor:
        return self.dense.to(self.compute_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). The dense weight exists anyway; nothing is gained by decoding it twice."""
        return F.linear(x, self.weight(), self.bias)
