"""What bitsandbytes' 4-bit codes stand for, and the order that its kernels for CPUs leave them in, undone."""

from __future__ import annotations

import copy
import functools
import warnings

import torch
from torch import Tensor

from lrft.methods.quant._bnb import QuantState, bitsandbytes_functional


@functools.cache
def levels_of(quant_type: str) -> Tensor:
    """The levels of weights (16,), on the CPU."""
    levels: Tensor = bitsandbytes_functional().get_4bit_type(quant_type, device=torch.device("cpu")).float()
    return levels


@functools.cache
def scale_levels() -> Tensor:
    """The levels of scales in 8 bits (256,), on the CPU."""
    levels: Tensor = bitsandbytes_functional().create_dynamic_map().float()
    return levels


def undo_repacking(packed: Tensor, state: QuantState) -> tuple[Tensor, Tensor, None, None]:
    """Codes in storage order, and the scales, of a weight that bitsandbytes repacked for its CPU kernel."""
    functional = bitsandbytes_functional()
    state = copy.copy(state)  # the inverse writes to its argument
    if state.original_nested or state.original_dtype != torch.bfloat16:
        warnings.warn(
            "adopting a 4-bit layer that was evaluated on CPU, which rounded its block scales to bfloat16",
            stacklevel=3,
        )
    state.original_nested = False  # else the inverse would quantize the rounded scales again
    codes, state = functional._convert_weight_packed_for_cpu_inverse(packed, state)
    return codes.view(torch.uint8).reshape(-1, 1), state.absmax.mT.reshape(-1).float(), None, None
