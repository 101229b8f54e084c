"""AdamW with its moments in 8 bits, in memory the driver moves between GPU and host."""

from __future__ import annotations

from lrft.methods.optim._bnb import BitsAndBytesAdamW
from lrft.registry.axes import OPTIMIZERS


@OPTIMIZERS.register
class PagedAdamW8bit(BitsAndBytesAdamW):
    """AdamW with its moments as 8-bit codes in paged memory, which moves between GPU and host.

    The equations and the numbers of `adamw8bit`, with the settings of `adamw`. Moments of tensors with at least 100,000
    numbers lie in CUDA managed memory, which goes to the host when the GPU runs full. On CPU nothing is paged, and a
    warning says so.

    Shapes: the codes as the parameter; m and v 0 before the first step.
    State: 2 numbers per parameter, 2.031 bytes; 8 bytes for tensors of fewer than 4096 numbers and for embeddings.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314 (paging); arXiv 2110.02861 (8-bit moments).
    Departures: none; weight decay as in `adamw8bit`.
    """

    aliases = {
        "bnb_paged_adamw_8bit paged_adam_8bit": "optimizer: paged_adamw8bit",
    }

    bits = 8
    paged = True
