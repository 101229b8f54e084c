"""AdamW with its moments in 8 bits, in memory the driver moves between GPU and host."""

from __future__ import annotations

from lrft.methods.optim._bnb import BitsAndBytesAdamW
from lrft.registry.axes import OPTIMIZERS


@OPTIMIZERS.register
class PagedAdamW8bit(BitsAndBytesAdamW):
    """`adamw8bit` with its moments in paged memory.

    The equations and the numbers of `adamw8bit`; moments of tensors with at least 100,000 numbers lie in CUDA
    managed memory, which goes to the host when the GPU runs full. On CPU nothing is paged, and a warning
    says so.
    State: 2.031 bytes per number, 8 for tensors of fewer than 4096 numbers and for embeddings.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314 (paging); arXiv 2110.02861 (8-bit moments).
    Departures: none; weight decay as in `adamw8bit`.
    """

    aliases = {
        "bnb_paged_adamw_8bit paged_adam_8bit": "optimizer: paged_adamw8bit",
    }

    bits = 8
    paged = True
