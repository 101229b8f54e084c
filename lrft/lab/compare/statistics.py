"""What a handful of seeds says: bootstrap intervals of a mean, and paired differences. Pure Python, no torch."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

Interval = tuple[float, float]

EXACT_RESAMPLES = 8  # values up to which every resample is enumerated: 6,435 of them
EXACT_FLIPS = 16  # differences up to which every choice of signs is
DRAWS = 20_000  # beyond, this many are drawn
CROSSED_DRAWS = 2_000
TOLERANCE = 1e-12  # relative; sums in another order differ by this


@dataclass(frozen=True)
class Paired:
    """Differences of two arms at equal seeds.

    Attributes:
        mean: mean difference, first minus second.
        interval: its bootstrap interval.
        lower, higher: seeds at which the first was lower, and higher; the rest are ties.
        pairs: how many seeds there are.
        p: two-sided p of the sign-flip test; at least 2 / 2^pairs, so 0.25 for three seeds.
    """

    mean: float
    interval: Interval
    lower: int
    higher: int
    pairs: int
    p: float


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """The percentile bootstrap interval of the mean.

    Up to eight values every resample is counted with its probability, so that nothing is random; for more, 20,000
    are drawn. The ends are means of resamples: at each no less than (1 - level) / 2 of the probability lies at or
    beyond it. Of one value it is that value, and says nothing.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not values:
        raise ValueError("the mean of no values has no interval")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    means = _every_mean(values) if len(values) <= EXACT_RESAMPLES else _drawn_means(values, seed)
    tail = (1 - level) / 2
    return _end(sorted(means), tail), _end(sorted(means, reverse=True), tail)


def crossed_interval(
    arm: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]],
    tokens: Sequence[int],
    gain: Callable[[float, float], float],
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a mean gain over seeds and held-out rows at once, 2,000 draws.

    Each draw takes as many seeds and as many rows as there are, with replacement, the same of both arms.

    Args:
        arm, against: (seeds, rows) summed losses.
        tokens: (rows,) how many tokens each sum is over.
        gain: of the two arms' mean losses per token at one seed.

    Raises:
        ValueError: no seeds or rows, or tables of unequal shape.
    """
    if not arm or not tokens or {len(row) for row in (*arm, *against)} != {len(tokens)}:
        raise ValueError("the arms were not scored on the same rows")
    draw = random.Random(seed)
    seeds, rows = range(len(arm)), range(len(tokens))
    means = []
    for _ in range(CROSSED_DRAWS):
        chosen = Counter(draw.choices(rows, k=len(tokens)))
        total = sum(tokens[row] * times for row, times in chosen.items())

        def mean(losses: Sequence[float], chosen: Counter[int] = chosen, total: int = total) -> float:
            return math.fsum(losses[row] * times for row, times in chosen.items()) / total

        drawn = Counter(draw.choices(seeds, k=len(arm)))
        gains = (times * gain(mean(arm[s]), mean(against[s])) for s, times in drawn.items())
        means.append(math.fsum(gains) / len(arm))
    ordered = [(value, 1 / CROSSED_DRAWS) for value in sorted(means)]
    tail = (1 - level) / 2
    return _end(ordered, tail), _end(ordered[::-1], tail)


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Paired:
    """Mean, interval, signs and test of `first - second`, seed by seed.

    Raises:
        ValueError: no pairs, or unequal lengths.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return Paired(
        mean=fmean(differences) if differences else math.nan,
        interval=bootstrap_interval(differences, level),
        lower=sum(d < 0 for d in differences),
        higher=sum(d > 0 for d in differences),
        pairs=len(differences),
        p=sign_flip_p(differences),
    )


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference this far from zero, if every sign were a coin's.

    Exact up to 16 differences; beyond, from 20,000 draws with the observed signs counted among them.
    """
    sizes = [abs(d) for d in differences]
    reach = abs(math.fsum(differences)) - TOLERANCE * math.fsum(sizes)
    if len(sizes) <= EXACT_FLIPS:
        signs = itertools.product((1, -1), repeat=len(sizes))
        hits = sum(abs(math.fsum(s * d for s, d in zip(row, sizes, strict=True))) >= reach for row in signs)
        return float(hits / 2 ** len(sizes))
    draw = random.Random(seed)
    hits = sum(abs(math.fsum(d if draw.random() < 0.5 else -d for d in sizes)) >= reach for _ in range(DRAWS))
    return (hits + 1) / (DRAWS + 1)


def _every_mean(values: Sequence[float]) -> list[tuple[float, float]]:
    """(mean, probability) of every multiset that n draws with replacement give."""
    n = len(values)
    found = []
    for chosen in itertools.combinations_with_replacement(range(n), n):
        ways = math.factorial(n)
        for index in set(chosen):
            ways //= math.factorial(chosen.count(index))
        found.append((math.fsum(values[index] for index in chosen) / n, ways / n**n))
    return found


def _drawn_means(values: Sequence[float], seed: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    means = (math.fsum(draw.choices(values, k=len(values))) / len(values) for _ in range(DRAWS))
    return [(mean, 1 / DRAWS) for mean in means]


def _end(means: list[tuple[float, float]], tail: float) -> float:
    """The first mean, in the order given, by which `tail` of the probability is reached."""
    reached = 0.0
    for mean, probability in means:
        reached += probability
        if reached >= tail * (1 - TOLERANCE):
            return mean
    return means[-1][0]
