"""AdamW in float32, in memory the driver moves between GPU and host: the optimizer of QLoRA."""

from __future__ import annotations

from lrft.methods.optim._bnb import BitsAndBytesAdamW
from lrft.registry.axes import OPTIMIZERS


@OPTIMIZERS.register
class PagedAdamW32bit(BitsAndBytesAdamW):
    """AdamW with float32 moments in paged memory, which moves between GPU and host: the optimizer of QLoRA.

    The equations and the settings of `adamw`. Moments of tensors with at least 100,000 numbers lie in CUDA managed
    memory, which goes to the host when the GPU runs full. On CPU nothing is paged, and a warning says so.

    Shapes: m and v as the parameter, both 0 before the first step.
    State: 2 numbers per parameter in float32, 8 bytes.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314.
    Departures: none; weight decay as in `adamw8bit`.
    """

    aliases = {
        "paged_adamw paged_adam": "optimizer: paged_adamw32bit",
    }
    provides = {"clippable", "first_order", "per_parameter", "entry_moments"}
    bits = 32
    paged = True
