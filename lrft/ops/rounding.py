"""Rounding to a coarser grid that is right on average."""

from __future__ import annotations

import torch
from torch import Tensor

# dtype -> bits of a float32 that are cut, and the power of two that lays the dtype's smallest normal number on
# float32's, so that what is cut is the same in its subnormal range.
GRIDS = {torch.bfloat16: (16, 0), torch.float16: (13, 112)}


def stochastic_round(
    values: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Float32 to `dtype`, up or down with the probability that makes the expectation exact.

    The numbers of the coarser grid are the float32 numbers whose low bits are zero: a uniform number is added to the
    low bits, which are then cut. What is not finite stays as it is; a value beyond the last number may become infinite.
    """
    cut, power = GRIDS[dtype]
    bits = torch.ldexp(values, torch.tensor(-power)) if power else values
    bits = bits.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << cut, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = bits.add(noise).bitwise_and_(-(1 << cut)).view(torch.float32)
    if power:
        rounded = torch.ldexp(rounded, torch.tensor(power))
    return torch.where(values.isfinite(), rounded, values).to(dtype)
