"""A model with weights that are drawn and not read: an architecture's own random start."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lrft.model.hf import HF


def draw(make: Callable[..., HF], dtype: torch.dtype, seed: int | None) -> HF:
    """The architecture's own random start: drawn on the CPU in float32, rounded to `dtype` once."""
    assert seed is not None, "random weights need the seed of the run"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hf = make(dtype=torch.float32)
    # Buffers, such as rotary frequencies, stay float32 as loading leaves them.
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(dtype)
    hf.config.dtype = dtype
    return hf
