"""NF4: 4-bit NormalFloat with double quantization."""

from __future__ import annotations

from lrft.methods.quant._bnb4bit import BitsAndBytes4bit
from lrft.registry.axes import QUANTIZERS


@QUANTIZERS.register
class NF4(BitsAndBytes4bit):
    """4-bit NormalFloat, the storage of QLoRA.

    W ~ level[c] * absmax(block)      a block: 64 consecutive weights, row by row; c: nearest of 16 levels
    absmax ~ map8[c8] * absmax2 + mean(absmax)      256 scales share one absmax2 (double quantization)
    Levels are quantiles of a normal distribution, with an exact 0 and ends at -1 and 1.
    Bits per weight: 4 + 8/64 + 32/(64*256) = 4.127; 4 + 32/64 = 4.5 without double quantization.
    Relative error on normally distributed weights: 0.092. Without double quantization the largest weight of a
    block is exact. The matmul is in the dtype of the activations; only the storage has 4 bits.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314, coded as in bitsandbytes. Departures: none.
    """

    aliases = {
        "4 4bit int4 q4 bnb bitsandbytes bnb_4bit load_in_4bit bnb.nf4 bnb.nf4-dq normalfloat4 nf4_double_quant "
        "normalfloat": "quantization: nf4",
    }

    quant_type = "nf4"
