"""Accuracy by the number of demonstrations: acc(n) = a - b exp(-n / tau), fitted to a few n and gone on with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lrft.api.planning.power_law import slope

SCALES = [0.25 * (64 / 0.25) ** (k / 39) for k in range(40)]  # demonstrations, from 0.25 to 64
FEWEST = 4  # points, one more than the curve has numbers


class Saturating(NamedTuple):
    """a, b >= 0 and tau > 0 of acc(n) = a - b exp(-n / tau)."""

    ceiling: float
    gap: float
    scale: float

    def at(self, n: float) -> float:
        """The accuracy with n demonstrations, from 0 to 1."""
        return min(max(self.ceiling - self.gap * math.exp(-n / self.scale), 0.0), 1.0)


def fit_shots(shots: Sequence[int], accuracies: Sequence[float]) -> Saturating:
    """The least squares over a grid of tau, with a at most 1 and b not negative: a falling curve is fitted by its mean.

    Raises:
        ValueError: fewer points than `FEWEST`.
    """
    if len(shots) < FEWEST:
        raise ValueError(f"a curve needs {FEWEST} points, not {len(shots)}")
    curves = [_linear(shots, accuracies, scale) for scale in SCALES]
    return min(curves, key=lambda curve: _error(curve, shots, accuracies))


def _linear(shots: Sequence[int], accuracies: Sequence[float], scale: float) -> Saturating:
    x = [math.exp(-n / scale) for n in shots]
    mean_x, mean_y = sum(x) / len(x), sum(accuracies) / len(x)
    gap = -slope(x, accuracies)
    if gap <= 0:
        return Saturating(mean_y, 0.0, scale)
    ceiling = mean_y + gap * mean_x
    if ceiling <= 1:
        return Saturating(ceiling, gap, scale)
    return Saturating(
        1.0,
        sum(a * (1 - b) for a, b in zip(x, accuracies, strict=True)) / sum(a * a for a in x),
        scale,
    )


def _error(curve: Saturating, shots: Sequence[int], accuracies: Sequence[float]) -> float:
    return sum(
        (curve.ceiling - curve.gap * math.exp(-n / curve.scale) - accuracy) ** 2
        for n, accuracy in zip(shots, accuracies, strict=True)
    )
