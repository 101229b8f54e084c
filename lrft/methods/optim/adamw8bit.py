"""AdamW with its moments in 8 bits."""

from __future__ import annotations

from lrft.methods.optim._bnb import BitsAndBytesAdamW
from lrft.registry.axes import OPTIMIZERS


@OPTIMIZERS.register
class AdamW8bit(BitsAndBytesAdamW):
    """AdamW whose moments are kept as 8-bit codes between steps.

        m, v <- decode(codes);  the equations of `adamw`;  codes <- encode(m, v)

    with the settings of `adamw`. 256 numbers share a float32 scale, their largest absolute value, and a code names the
    nearest of 256 values of a map that is dense near zero.

    Shapes: the codes as the parameter; m and v 0 before the first step.
    State: 2 numbers per parameter, 2 + 8/256 = 2.031 bytes. Tensors of fewer than 4096 numbers, and embeddings, keep
    float32 moments, 8 bytes per number.
    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, arXiv 2110.02861.
    Departures: none of ours. In bitsandbytes weight decay comes before the update on CPU and after it on GPU, so the
    update of the two differs by a factor 1 - lr wd.
    """

    aliases = {
        "adamw_bnb_8bit adamw_bnb bnb_adamw adamw_torch_8bit adam_8bit": "optimizer: adamw8bit",
    }

    bits = 8
    paged = False
