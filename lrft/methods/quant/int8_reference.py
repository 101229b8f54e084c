"""int8 in plain torch: the check on `int8`, and a stand-in where bitsandbytes is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig

INVERSE_127 = 7.874015718698502e-3  # 1/127 in float32, by which bitsandbytes multiplies instead of dividing


@QUANTIZERS.register
class Int8Reference(Encoded):
    """Row-wise int8 written out in torch; same codes and weights as `int8` on CPU, and a stand-in.

        c = round half to even of W * (127 / absmax(row)),  in float32
        W ~ c * absmax(row) / 127

    with absmax(row) the largest magnitude in a row of W. A row of zeros stays zero.

    Shapes: W, codes c (out, in); absmax (out).
    Bits: 8 + 32/in a weight.
    Source: Dettmers et al., "LLM.int8()", 2022, arXiv 2208.07339.
    Departures: weights only, see `int8`.
    """

    scales = ("absmax",)
    codes: Tensor
    absmax: Tensor

    class Config(MethodConfig):
        pass

    def encode(self, weight: Tensor) -> None:
        codes, absmax = quantize_rows(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)

    def weight(self) -> Tensor:
        return dequantize_rows(self.codes, self.absmax).to(self.compute_dtype)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> codes (out, in) int8 and scales (out,) float32."""
    exact = weight.float()
    absmax = exact.abs().amax(1)
    steps = torch.where(absmax > 0, 127.0 / absmax, 0.0)
    return torch.round(exact * steps[:, None]).to(torch.int8), absmax


def dequantize_rows(codes: Tensor, absmax: Tensor) -> Tensor:
    """Codes (out, in) and scales (out,) -> weight (out, in) float32."""
    return codes * absmax[:, None] * INVERSE_127
