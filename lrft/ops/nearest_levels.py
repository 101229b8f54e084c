"""Four-bit codes of a weight by a kernel of this machine, bit for bit those of bitsandbytes and much sooner."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.native import halves, kernels_for


@torch.no_grad()
def nearest_levels(weight: Tensor, levels: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
    """Codes (n / 2, 1) uint8, the first of two in the high nibble, and scales (n / size,) float32 of n numbers.

    Args:
        levels: (16,) float32, in [-1, 1]; code k stands for the k-th times its block's scale.
        size: numbers of a block, whose scale is the largest magnitude in it.

    Returns:
        None where no kernel applies, the last block is not whole, or the levels do not rise.
    """
    kernels = kernels_for(weight)
    if kernels is None or weight.numel() % size or not bool((levels.diff() > 0).all()):
        return None
    codes = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    scales = torch.empty(weight.numel() // size)
    bounds = (levels[:-1] + levels[1:]) / 2
    kernels("encode_4bit", weight, bounds, codes, scales, halves(weight), len(scales), size)
    return codes, scales
