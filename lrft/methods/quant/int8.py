"""int8: one scale a row, decoded before the matmul."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrft.core.levels import Levelled
from lrft.methods.quant._bnb import bitsandbytes_functional
from lrft.methods.quant._encoded import Encoded
from lrft.ops.levels import Levels, search_scales
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig
from lrft.registry.json import Json

LARGEST = 127  # code


@QUANTIZERS.register
class Int8(Encoded, Levelled):
    """8-bit integers with one scale per output row, weights only, decoded before the matmul.

        c = round(W * 127 / absmax(row)) in -127 ... 127
        W ~ c * absmax(row) / 127

    with absmax(row) the largest magnitude in a row of W. A row of zeros stays zero.

    Shapes: W, codes c (out, in); absmax (out).
    Bits: 8 + 32/in a weight.
    Source: the row-wise weight codes of Dettmers et al., "LLM.int8()", 2022, arXiv 2208.07339.
    Departures: activations stay in floating point and no outlier columns are split off. LLM.int8() rounds the
    activations as well, so that its forward pass is not x W^T for any W: the merge would not be what was trained, and
    the backward pass dx = dy W not the derivative. On CPU its integer matmul is slower, too.
    Advice: on a GPU bitsandbytes' encoder takes float16, through which the weight passes there.
    """

    aliases = {
        "8 8bit q8 bnb_8bit load_in_8bit llm_int8 bnb.int8 w8a16": "quantization: int8",
    }

    on_cpu = "decoding int8 makes a step on a CPU several times slower; nf4 is the faster one here, in half the memory"
    provides: ClassVar[set[str]] = {"rounded_base", "levels"}
    lighter = "nf4"
    scales = ("absmax",)
    codes: Tensor
    absmax: Tensor

    class Config(MethodConfig):
        pass

    @classmethod
    def bits(cls, config: Config) -> float:
        """Of the codes: the scale of a row is a few thousandths of a bit more."""
        return 8.0

    def encode(self, weight: Tensor) -> None:
        source = weight if weight.device.type == "cpu" else weight.half()
        codes, scales, _ = bitsandbytes_functional().int8_vectorwise_quant(source.contiguous())
        codes.masked_fill_(scales[:, None] == 0, 0)  # 0 * (127 / 0) is no number
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", scales)

    def weight(self) -> Tensor:
        dense: Tensor = bitsandbytes_functional().int8_vectorwise_dequant(self.codes, self.absmax)
        return dense.to(self.compute_dtype)

    def search(self, weight: Tensor, cost: Tensor) -> None:
        scales = search_scales(weight.float()[:, None], cost[None], Levels(self._levels()))
        self.register_buffer("absmax", scales[:, 0])

    def grid(self) -> tuple[Tensor, Tensor]:
        return self.absmax[:, None].expand(self.out_features, self.in_features), self._levels()

    def take(self, codes: Tensor) -> None:
        self.register_buffer("codes", (codes - LARGEST).to(torch.int8))

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        row_major = torch.tensor(0, dtype=torch.uint8)  # bitsandbytes' number of the layout
        return {"weight": self.codes, "SCB": self.absmax, "weight_format": row_major}

    @classmethod
    def fits(cls, config: Config, out_features: int, in_features: int) -> bool:
        return True

    @classmethod
    def said(cls, config: Config, dtype: torch.dtype, kept: list[str]) -> dict[str, Json]:
        return {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": [*kept]}

    def _levels(self) -> Tensor:
        return torch.arange(-LARGEST, LARGEST + 1, device=self.codes.device) / LARGEST
