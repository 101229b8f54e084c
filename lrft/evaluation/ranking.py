"""Scores of a ranking, from the places at which what was looked for stands in it. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

Ranks = Sequence[int]
"""Places of all relevant items of a query, from 1 on, rising."""


def recall_at(ranks: Ranks, k: int) -> float:
    """The share of the relevant items among the first k."""
    return sum(rank <= k for rank in ranks) / len(ranks)


def reciprocal_rank_at(ranks: Ranks, k: int) -> float:
    """1 over the place of the first relevant item, 0 where that is beyond k."""
    return 1 / ranks[0] if ranks[0] <= k else 0.0


def ndcg_at(ranks: Ranks, k: int) -> float:
    """Discounted gain of the first k, every relevant item gaining 1, over that of the best order."""
    best = sum(map(_discount, range(1, min(k, len(ranks)) + 1)))
    return sum(_discount(rank) for rank in ranks if rank <= k) / best


def mean_of(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean and its standard error, sample deviation / sqrt(n); nan for a single value."""
    n = len(values)
    mean = sum(values) / n
    spread = sum((value - mean) ** 2 for value in values)
    return {name: mean, f"{name}_stderr": math.sqrt(spread / (n - 1) / n) if n > 1 else math.nan}


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)
