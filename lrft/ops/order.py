"""Order statistics of more numbers than should be in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

LOW = 16  # bits of a float32 that the first pass leaves open


def kth_largest(values: Callable[[], Iterable[Tensor]], k: int) -> float:
    """The k-th largest absolute value, exactly, in two passes over float32 tensors; 0 where there are fewer than k.

    Bits of floats without a sign are ordered as the floats are, so the first pass counts by their upper half, and the
    second one, within the half that holds the answer, by the lower.
    """
    if k < 1:
        return float("inf")
    upper = _counts(values, lambda bits: bits >> LOW, 1 << (32 - LOW))
    found = _place(upper, k)
    if found is None:
        return 0.0
    high, left = found
    lower = _counts(values, lambda bits: bits[bits >> LOW == high] & ((1 << LOW) - 1), 1 << LOW)
    low = _place(lower, left)
    assert low is not None, "values differ between two passes"
    return float(torch.tensor((high << LOW) | low[0], dtype=torch.int32).view(torch.float32))


def _counts(values: Callable[[], Iterable[Tensor]], key: Callable[[Tensor], Tensor], bins: int) -> Tensor:
    total = torch.zeros(bins, dtype=torch.long)
    for value in values():
        bits = value.detach().cpu().float().abs().contiguous().flatten().view(torch.int32)
        total += torch.bincount(key(bits), minlength=bins)
    return total


def _place(counts: Tensor, k: int) -> tuple[int, int] | None:
    """The bin of the k-th largest, and which of the bin's own it is."""
    above = counts.flip(0).cumsum(0).flip(0)  # in this bin and those beyond
    if int(above[0]) < k:
        return None
    place = int((above >= k).nonzero()[-1])
    beyond = int(above[place + 1]) if place + 1 < len(counts) else 0
    return place, k - beyond
