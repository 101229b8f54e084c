"""FP4: a 4-bit floating point number per weight."""

from __future__ import annotations

from lrft.methods.quant._bnb4bit import BitsAndBytes4bit
from lrft.registry.axes import QUANTIZERS


@QUANTIZERS.register
class FP4(BitsAndBytes4bit):
    """4-bit floating point: sign, two bits of exponent, one of mantissa.

        W ~ level[c] * absmax(block),  level in +-{0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1}

    with blocks, packing, `block_size` and `double_quant` as in `nf4`; c the nearest level.

    Shapes: as in `nf4`.
    Bits: 4.127 a weight, 4.5 with `double_quant: false`, as in `nf4`. The relative error on normally distributed
    weights is 0.12, against 0.092 of `nf4`.
    Source: the FP4 baseline of Dettmers et al., "QLoRA", 2023, arXiv 2305.14314, coded as in bitsandbytes.
    Departures: none.
    Advice: prefer `nf4` unless a checkpoint is stored this way.
    """

    aliases = {
        "bnb.fp4 bnb.fp4-dq float4": "quantization: fp4",
    }

    quant_type = "fp4"
