"""Weights on their way into a file: checked, and rounded to its precision by name, the same every time."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lrft.ops.rounding import stochastic_round
from lrft.registry.errors import NumericalError

CHUNK = 1 << 22  # numbers whose random bits exist at a time


def rounded(name: str, values: Tensor, dtype: torch.dtype, stochastic: bool = True) -> Tensor:
    """`values` in `dtype` on the CPU, rounded stochastically or to nearest; what lies on the grid stays as it is.

    The draws are seeded by `name` and made on the CPU, so the result depends on nothing else: no order of tensors, no
    shard, no device.

    Raises:
        NumericalError: a value is not finite, or larger than `dtype` can say.
    """
    check_finite(name, values)
    values = values.detach().cpu()
    nearest = values.to(dtype)
    check_range(name, values, nearest)
    if not stochastic or dtype == torch.float32 or values.dtype == dtype:
        return nearest
    generator = torch.Generator().manual_seed(_seed(name))
    flat, out = values.contiguous().flatten(), nearest.contiguous().flatten()
    for start in range(0, flat.numel(), CHUNK):
        drawn = stochastic_round(flat[start : start + CHUNK].float(), generator, dtype)
        kept = out[start : start + CHUNK]
        kept.copy_(torch.where(drawn.isfinite(), drawn, kept))  # the largest number has no neighbour above
    return out.view(values.shape)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse what is no number.

    Raises:
        NumericalError: names the tensor.
    """
    if not values.is_floating_point() or values.isfinite().all():
        return
    count = int((~values.isfinite()).sum())
    raise NumericalError(
        f"{name}: {count} of its {values.numel()} values are not finite, so nothing was written; name an earlier "
        "checkpoint of the run (RUN/checkpoints/step-N), or train again with a lower optimizer.lr"
    )


def check_range(name: str, values: Tensor, nearest: Tensor) -> None:
    """Refuse finite values that became infinite.

    Raises:
        NumericalError: names the tensor and its largest value.
    """
    if nearest.isfinite().all():
        return
    dtype = str(nearest.dtype).removeprefix("torch.")
    raise NumericalError(
        f"{name}: its largest value {float(values.abs().max()):.6g} is beyond {dtype}, which ends at "
        f"{torch.finfo(nearest.dtype).max:.6g}, so nothing was written; export in bfloat16 or float32"
    )


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
