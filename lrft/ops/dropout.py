"""Dropout of the inputs of low-rank terms: drawn as gaps between zeros, shared by the sites that read one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SPARSE = 0.25  # up to this probability, drawing where zeros are is cheaper than drawing for every entry

_meta_as = "cuda"


@contextmanager
def meta_as(device: str) -> Iterator[None]:
    """Let tensors without storage take the form of draw that tensors on `device` take, to count its bytes."""
    global _meta_as
    before, _meta_as = _meta_as, device
    try:
        yield
    finally:
        _meta_as = before


@dataclass(frozen=True)
class Dropped:
    """An input with entries dropped, not yet scaled up.

    Attributes:
        kept: (tokens, in), x with zeros where it was dropped.
        zeros: where it was dropped: flat positions (k,) int64 in ascending order, or (tokens, in) bool.
        factor: 1 / (share that is kept); `factor * kept` has the expectation x.
    """

    kept: Tensor
    zeros: Tensor
    factor: float

    def to(self, dtype: torch.dtype) -> Dropped:
        """The same draw, its input in `dtype`."""
        return replace(self, kept=self.kept.to(dtype))

    def whole(self, x: Tensor) -> Tensor:
        """What was dropped of x, scaled up, (..., in) with a graph to x."""
        seen = clear(torch.ones_like(self.kept), self.zeros).mul_(self.factor)
        return x * seen.view(x.shape)


def clear(values: Tensor, zeros: Tensor) -> Tensor:
    """Set to 0 in place what was dropped of contiguous `values` (tokens, in); `zeros` as in `Dropped`."""
    if zeros.dtype == torch.bool:
        return values.masked_fill_(zeros, 0)
    # A few scattered writes: a mask in half precision costs as much as a matrix product.
    values.view(-1).index_fill_(0, zeros, 0)
    return values


def drop(x: Tensor, probability: float, *, shared: bool = True) -> Dropped:
    """Entries of x (..., in) dropped by one draw of the ambient generator.

    Args:
        probability: that an entry is dropped, each by itself.
        shared: callers with this very tensor and probability, one after another, get one draw, as the projections of
            an attention do that read the same input. One after another means that nothing was drawn in between: with
            activations recomputed, generator and tensors are those of the first pass, and so are the draws.
    """
    if not shared:
        return _draw(x, probability)
    key, draws = (x._version, probability), getattr(x, "_dropped", None)
    if draws is None:
        # The draw lives as long as its input: a table by identity would keep it, or find another tensor's.
        draws = x._dropped = {}  # type: ignore[attr-defined]
    found = draws.get(key)
    if found is None or not torch.equal(found[1], _state(x.device)):
        dropped = _draw(x, probability)
        draws[key] = found = dropped, _state(x.device)
    result: Dropped = found[0]
    return result


def _state(device: torch.device) -> Tensor:
    """The state of the ambient generator of a device, uint8 on the host."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@torch.no_grad()
def _draw(x: Tensor, probability: float) -> Dropped:
    flat = x.detach().reshape(-1, x.shape[-1])
    if flat.is_meta and _meta_as == "cpu" and probability <= SPARSE:
        return Dropped(
            torch.empty_like(flat), flat.new_empty(_most(flat.numel(), probability), dtype=torch.int64), 1
        )
    if flat.device.type == "cpu" and probability <= SPARSE:
        zeros = positions(flat.numel(), probability)
    else:  # on a GPU the number of positions would have to be waited for
        zeros = torch.empty(flat.shape, dtype=torch.bool, device=flat.device).bernoulli_(probability)
    kept = clear(flat.clone(memory_format=torch.contiguous_format), zeros)
    return Dropped(kept, zeros, 1 / (1 - probability))


def positions(count: int, probability: float) -> Tensor:
    """Which of `count` entries are dropped, ascending (k,) int64, each by itself with `probability`.

    The gaps between neighbours of such a draw are geometric: floor(log(1 - U) / log(1 - p)), one uniform U a zero
    instead of one an entry.
    """
    uniform = torch.rand(_most(count, probability))
    gaps = uniform.neg_().log1p_().mul_(1 / math.log1p(-probability)).long()
    places = gaps.add_(1).cumsum(0).sub_(1)
    return places[: int(torch.searchsorted(places, count))]


def _most(count: int, probability: float) -> int:
    """Zeros that are drawn for `count` entries: eight deviations are always enough."""
    return int(count * probability + 8 * math.sqrt(count * probability) + 32)
