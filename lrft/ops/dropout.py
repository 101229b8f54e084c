"""Dropout of the inputs of low-rank terms: drawn from whole words, shared by the sites that read one tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LANES = 1 << 16  # a number of 16 random bits decides on one entry


@dataclass(frozen=True)
class Dropped:
    """An input with entries dropped, not yet scaled up.

    Attributes:
        kept: (tokens, in), x with zeros where it was dropped.
        zeros: (tokens, in) bool, True where it was dropped.
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
        return self.factor * x.masked_fill(self.zeros.view(x.shape), 0)


def drop(x: Tensor, probability: float, *, shared: bool = True) -> Dropped:
    """Entries of x (..., in) dropped by one draw of the ambient generator.

    Args:
        probability: that an entry is dropped. On a CPU it is a multiple of 2^-16, and `factor` is exact for that one.
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
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


@torch.no_grad()
def _draw(x: Tensor, probability: float) -> Dropped:
    flat = x.detach().reshape(-1, x.shape[-1])
    zeros, exact = _zeros(flat, probability)
    return Dropped(flat.masked_fill(zeros, 0), zeros, 1 / (1 - exact))


def _zeros(flat: Tensor, probability: float) -> tuple[Tensor, float]:
    """Where entries are dropped, and how probable that was."""
    threshold = round(probability * LANES)
    if flat.device.type != "cpu" or not 0 < threshold < LANES:
        return torch.empty(flat.shape, dtype=torch.bool, device=flat.device).bernoulli_(
            probability
        ), probability
    # Four entries a word: a third of the time that drawing a float for each takes.
    words = torch.empty(-(-flat.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    lanes = words.view(torch.int16)[: flat.numel()].view(flat.shape)
    return lanes < threshold - LANES // 2, threshold / LANES
