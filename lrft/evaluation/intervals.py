"""Intervals and tests for scores of rows: of a share, of a paired difference, of a gap between groups. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Interval = tuple[float, float]

Z = 1.959963984540054  # of a two-sided interval of 95 %
DRAWS = 2000


def wilson(hits: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share of hits among n > 0 (Wilson, 1927)."""
    share, square = hits / n, Z * Z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p that rows change one way as readily as the other; 1 where none changed (McNemar, 1947)."""
    n = lost + gained
    tail: float = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    return min(1.0, 2 * tail)


def bootstrap(rows: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int = 0) -> Interval:
    """The percentile interval of 95 % of a statistic of rows, 2,000 resamples with replacement.

    Resamples of which the statistic is no number, as those without a row of some group, are drawn anew.
    """
    draw = random.Random(seed)
    found: list[float] = []
    for _ in range(20 * DRAWS):
        value = statistic(draw.choices(rows, k=len(rows)))
        if not math.isnan(value):
            found.append(value)
        if len(found) == DRAWS:
            return quantile(found, 0.025), quantile(found, 0.975)
    return math.nan, math.nan


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
