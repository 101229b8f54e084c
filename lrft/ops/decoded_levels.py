"""The numbers that four-bit codes stand for, by a kernel of this machine, in the precision of the products."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.native import kernels_on
from lrft.ops.products import room_of

WHOLE = 32  # numbers at a time
Scales = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # codes (k,) uint8, their levels (256,), scales of scales, and the offset


@torch.no_grad()
def decoded_levels(
    codes: Tensor, levels: Tensor, scales: Tensor | Scales, shape: tuple[int, int], size: int, per: int
) -> Tensor | None:
    """A weight (out, in) of numbers of bfloat16 as float32, in the room of widened weights.

    Bit for bit what bitsandbytes decodes to bfloat16, widened, without the tensor in between.

    Args:
        codes: (n / 2, 1) uint8, the first of two in the high nibble.
        levels: (16,) float32.
        scales: (n / size,) float32 of n numbers, or their codes, of which `per` in turn share a scale of their own.

    Returns:
        None where no kernel applies, or the last block is not whole.
    """
    kernels, count = kernels_on(codes.device), shape[0] * shape[1]
    if kernels is None or codes.is_meta or count % size or size % WHOLE:
        return None
    weight = room_of("weight", shape)
    known = [scales] if isinstance(scales, Tensor) else [*scales]
    held = [one.contiguous() for one in known]  # by name while the kernel reads it
    given = (held[0], None, None, None, None) if isinstance(scales, Tensor) else (None, *held)
    kernels("decode_4bit", codes.contiguous(), levels, *given, weight, count // size, size, per)
    return weight
