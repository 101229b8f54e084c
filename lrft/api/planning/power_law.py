"""A loss curve continued: loss(n) = E + A n^-alpha, fitted to a few points, with what the fit does not know."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALPHAS = [0.05 * (2 / 0.05) ** (k / 39) for k in range(40)]  # from 0.05 to 2
DRAWS = 200
FEWEST = 4  # points, one more than the curve has numbers


class Curve(NamedTuple):
    """E >= 0, A >= 0 and alpha of E + A n^-alpha."""

    floor: float
    scale: float
    alpha: float

    def at(self, n: float) -> float:
        """The loss at n."""
        return self.floor + self.scale * math.pow(n, -self.alpha)


@dataclass(frozen=True)
class Continued:
    """A curve and its value at a later n; the interval is of refits to resampled residuals, each with one added."""

    curve: Curve
    loss: float
    low: float
    high: float
    rmse: float


def fit(steps: Sequence[float], losses: Sequence[float]) -> Curve:
    """The least squares over a grid of alpha, with E and A that are not negative.

    Raises:
        ValueError: fewer points than `FEWEST`.
    """
    if len(steps) < FEWEST:
        raise ValueError(f"a curve needs {FEWEST} points, not {len(steps)}")
    found = [(_error(curve, steps, losses), curve) for curve in (_linear(steps, losses, a) for a in ALPHAS)]
    return min(found)[1]


def proceed(steps: Sequence[float], losses: Sequence[float], n: float, seed: int = 0) -> Continued:
    """The curve at n, with the interval that its residuals leave."""
    curve = fit(steps, losses)
    residuals = [loss - curve.at(step) for step, loss in zip(steps, losses, strict=True)]
    spread = math.sqrt(len(steps) / (len(steps) - 3))  # three numbers were fitted to them
    draw = random.Random(seed)
    ends = []
    for _ in range(DRAWS):
        noise = [spread * one for one in draw.choices(residuals, k=len(steps) + 1)]
        again = [curve.at(step) + one for step, one in zip(steps, noise, strict=False)]
        ends.append(fit(steps, again).at(n) + noise[-1])
    ends.sort()
    rmse = math.sqrt(sum(one * one for one in residuals) / len(residuals))
    return Continued(curve, curve.at(n), ends[int(0.025 * DRAWS)], ends[int(0.975 * DRAWS)], rmse)


def _linear(steps: Sequence[float], losses: Sequence[float], alpha: float) -> Curve:
    x = [step**-alpha for step in steps]
    mean_x, mean_y = sum(x) / len(x), sum(losses) / len(x)
    scale = slope(x, losses)
    if scale <= 0:
        return Curve(max(mean_y, 0.0), 0.0, alpha)
    floor = mean_y - scale * mean_x
    if floor >= 0:
        return Curve(floor, scale, alpha)
    return Curve(0.0, sum(a * b for a, b in zip(x, losses, strict=True)) / sum(a * a for a in x), alpha)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """That of the line of least squares through the points; 0 where all have one x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    under = sum((a - mean_x) ** 2 for a in x)
    return over / under if under else 0.0


def _error(curve: Curve, steps: Sequence[float], losses: Sequence[float]) -> float:
    return sum((curve.at(step) - loss) ** 2 for step, loss in zip(steps, losses, strict=True))
