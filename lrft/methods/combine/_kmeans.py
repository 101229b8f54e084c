"""K-means by Lloyd's iteration from several k-means++ starts, in float64 and the same every time."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 300


def kmeans(points: Tensor, k: int, seed: int, starts: int = 10) -> Tensor:
    """The cluster of every point (n, d): (n,) from 0 to k - 1, that of the start with the least inertia.

    With as many clusters as points each is its own, in their order.
    """
    if k >= len(points):
        return torch.arange(len(points))
    points = points.double()
    draws = torch.Generator().manual_seed(seed)
    found = [_lloyd(points, _start(points, k, draws)) for _ in range(starts)]
    return min(found, key=lambda one: one[1])[0]


def _start(points: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """K of the points, each drawn in proportion to the squared distance from those before it."""
    first = torch.randint(len(points), (1,), generator=draws)
    chosen = points[first]
    nearest = _distances(points, chosen)[:, 0]
    for _ in range(k - 1):
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        place = torch.multinomial(weights, 1, generator=draws)
        chosen = torch.cat([chosen, points[place]])
        nearest = torch.minimum(nearest, _distances(points, points[place])[:, 0])
    return chosen


def _lloyd(points: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Clusters and inertia once nothing moves; a cluster that lost all its points takes the one furthest off."""
    before: Tensor | None = None
    for _ in range(ITERATIONS):
        distances = _distances(points, centers)
        own, cluster = distances.min(1)
        for empty in (torch.bincount(cluster, minlength=len(centers)) == 0).nonzero()[:, 0].tolist():
            place = int(own.argmax())
            cluster[place], own[place] = empty, 0.0
        if before is not None and torch.equal(cluster, before):
            break
        before = cluster
        centers = torch.stack([points[cluster == k].mean(0) for k in range(len(centers))])
    inertia = float((points - centers[cluster]).square().sum())
    return cluster, inertia


def _distances(points: Tensor, centers: Tensor) -> Tensor:
    """Squared, (n, k), without the cancellation of a product."""
    return torch.stack([(points - center).square().sum(1) for center in centers], dim=1)
