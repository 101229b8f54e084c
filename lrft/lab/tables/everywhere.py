"""Criteria about every layer, step or rank: one number for each key, arm against arm, key by key. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Keyed = Mapping[str, float]
TIE = 1e-6  # relative; what float32 sums differ by when they are equal


@dataclass(frozen=True)
class Counted:
    """How the keys of all seeds came out.

    Attributes:
        better, equal, worse: keys at which the arm was better, the same within 1e-6, and worse.
        gains: of each seed, the mean gain over its keys.
        ours, theirs: means over the keys of all seeds, of the arm and of the other.
        worst: the key with the smallest gain, `KEY at seed number S`.
    """

    better: int
    equal: int
    worse: int
    gains: list[float]
    ours: float
    theirs: float
    worst: str

    @property
    def keys(self) -> int:
        """All keys of all seeds."""
        return self.better + self.equal + self.worse


def count_keys(arm: Sequence[Keyed], against: Sequence[Keyed], sign: int) -> Counted:
    """Compare key by key.

    Args:
        arm, against: one mapping a seed, with the same keys.
        sign: 1 where lower is better, -1 where higher is.

    Raises:
        ValueError: the two have different keys at a seed, or none.
    """
    better = equal = worse = 0
    gains, worst = [], (float("inf"), "")
    for seed, (ours, theirs) in enumerate(zip(arm, against, strict=True)):
        if ours.keys() != theirs.keys() or not ours:
            odd = sorted(ours.keys() ^ theirs.keys())[:3]
            raise ValueError(f"the two arms have different keys: {', '.join(odd) or 'none at all'}")
        of_seed = []
        for key, mine in ours.items():
            gain = sign * (theirs[key] - mine)
            tie = abs(gain) <= TIE * max(abs(mine), abs(theirs[key]))
            better, equal, worse = (
                better + (gain > 0 and not tie),
                equal + tie,
                worse + (gain < 0 and not tie),
            )
            worst = min(worst, (gain, f"{key} at seed {seed + 1} of {len(arm)}"))
            of_seed.append(gain)
        gains.append(fmean(of_seed))
    means = [fmean(number for one in side for number in one.values()) for side in (arm, against)]
    return Counted(better, equal, worse, gains, means[0], means[1], worst[1])
