"""NF4: 4-bit NormalFloat with double quantization."""

from __future__ import annotations

from lrft.methods.quant._bnb4bit import BitsAndBytes4bit
from lrft.registry.axes import QUANTIZERS


@QUANTIZERS.register
class NF4(BitsAndBytes4bit):
    """4-bit NormalFloat with double quantization, the storage of QLoRA.

        W ~ level[c] * absmax(block)
        absmax ~ map8[c8] * absmax2 + mean(absmax)      with `double_quant: true`

    with a block `block_size` (64) consecutive weights, row by row, c the nearest of 16 levels of W / absmax(block),
    absmax the largest magnitude of the block; 256 scales share one absmax2 (double quantization), c8 is the nearest of
    the 256 values map8. Levels are quantiles of a normal distribution, with an exact 0 and ends at -1 and 1. The matmul
    is in the dtype of the activations; only the storage has 4 bits.

    Shapes: W (out, in), n = out in weights; codes (ceil(n / 2), 1), two a byte, the first in the high nibble; absmax
    (ceil(n / block_size)).
    Bits: 4 + 8/64 + 32/(64*256) = 4.127 a weight; 4 + 32/64 = 4.5 with `double_quant: false`. Relative error on
    normally distributed weights: 0.092. Without double quantization the largest weight of a block is exact.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314, coded as in bitsandbytes.
    Departures: none.
    """

    aliases = {
        "4 4bit int4 q4 bnb bitsandbytes bnb_4bit load_in_4bit bnb.nf4 bnb.nf4-dq normalfloat4 nf4_double_quant "
        "normalfloat": "quantization: nf4",
    }

    quant_type = "nf4"
