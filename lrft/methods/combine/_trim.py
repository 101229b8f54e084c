"""Keeping the entries of a change that moved furthest, of every layer for itself or of a parent's whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lrft.core.combine import Combination, Part, Parts
from lrft.ops.order import kth_largest


def thresholds(sites: Mapping[str, Parts], share: float) -> list[float]:
    """Of every parent, the absolute value that the `share` largest entries of all its layers together reach.

    A layer that a parent does not change counts with its zeros, so that `share` is of the same number for all.
    """
    parents = zip(*sites.values(), strict=True)
    return [_threshold(parts, share) for parts in parents]


def trimmed(parts: Parts, share: float, reached: Sequence[float] | None) -> list[Tensor]:
    """Every parent's change at one layer, (out, in), without what is not among its largest entries.

    Args:
        share: of the entries of this layer that stay.
        reached: `thresholds` of the parents, where it is of all layers together.
    """
    changes = [part.change() for part in parts]
    if reached is None:
        return [largest(change, share) for change in changes]
    return [above(change, reach) for change, reach in zip(changes, reached, strict=True)]


def above(change: Tensor, threshold: float) -> Tensor:
    """The entries that reach the threshold, the others 0."""
    return torch.where(change.abs() >= threshold, change, 0.0)


def largest(change: Tensor, share: float) -> Tensor:
    """The int(share * entries) largest entries by absolute value, the others 0."""
    count = int(share * change.numel())
    kept = torch.zeros(change.numel(), dtype=torch.bool)
    kept[change.abs().flatten().topk(count).indices] = True
    return torch.where(kept.view(change.shape), change, 0.0)


def _threshold(parts: tuple[Part, ...], share: float) -> float:
    entries = sum(part.A.shape[1] * part.B.shape[0] for part in parts)
    return kth_largest(lambda: (part.change() for part in parts), int(share * entries))


class Trimming(Combination):
    """A combination that begins with the largest entries of every change: settings `density` and `trim`."""

    reached: Sequence[float] | None

    def look(self, sites: Mapping[str, Parts]) -> None:
        self.reached = thresholds(sites, self.config.density) if self.config.trim == "model" else None

    def kept(self, parts: Parts) -> list[Tensor]:
        """Every parent's change at one layer, (out, in), trimmed."""
        return trimmed(parts, self.config.density, self.reached)
