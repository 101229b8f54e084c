"""A criterion that was stated beforehand, and what the seeds say about it. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lrft.compare.statistics import Interval, bootstrap_interval
from lrft.core.config import Field, Literal, Section, model_validator

Name = Literal["confirmed", "not confirmed", "refuted", "not decidable"]
# The verdict on several criteria is the first of these that any of them has.
GRAVEST: tuple[Name, ...] = ("refuted", "not decidable", "not confirmed", "confirmed")


class Criterion(Section):
    """What one arm must show against another. All conditions that are written must hold."""

    metric: str = Field(
        "eval_loss",
        min_length=1,
        description="key of metrics.jsonl at the last step, `KEY@STEP` at that step, or key of result.json",
    )
    better: Literal["lower", "higher"] = "lower"
    arm: str = Field(min_length=1, description="label of the arm that the claim is about")
    against: str = Field(min_length=1, description="label of the arm it is compared with")
    at_most_ratio: float | None = Field(
        None, gt=0, description="largest mean of arm / mean of against; above 1 for `not much worse than`"
    )
    at_least_gain: float | None = Field(
        None, description="smallest mean gain, in the metric's unit; below 0 for `not much worse than`"
    )
    all_seeds: bool = Field(False, description="the arm must be better at every seed")

    @model_validator(mode="after")
    def _decides_something(self) -> Criterion:
        if self.at_most_ratio is None and self.at_least_gain is None and not self.all_seeds:
            raise ValueError("needs a condition: at_most_ratio, at_least_gain or all_seeds: true")
        if self.at_most_ratio is not None and self.better == "higher":
            raise ValueError("at_most_ratio is for better: lower; use at_least_gain, or swap arm and against")
        if self.arm == self.against:
            raise ValueError(f"arm and against are both {self.arm!r}; name two arms")
        return self


@dataclass(frozen=True)
class Verdict:
    """The answer to one criterion.

    Attributes:
        gain: mean over the seeds of how much better the arm was; None without a seed.
        interval: bootstrap interval of the gain.
        ratio: mean of arm / mean of against; None where that is not defined.
        wins, pairs: seeds at which the arm was better, of how many both arms finished.
        reason: one sentence.
    """

    name: Name
    gain: float | None
    interval: Interval | None
    ratio: float | None
    wins: int
    pairs: int
    reason: str


def verdict(
    criterion: Criterion, arm: Sequence[float | None], against: Sequence[float | None], seeds: int
) -> Verdict:
    """Judge a criterion by the two arms' values, seed by seed.

    *confirmed*: every condition holds, and the direction is certain. *not confirmed*: the direction is right and
    certain, a condition is missed. *refuted*: the direction is wrong and certain. *not decidable*: fewer than
    `seeds` pairs, fewer than two, or the interval covers zero. Where the criterion allows the arm to be worse by
    so much (a ratio above 1, a gain below 0), direction is counted from there.

    Args:
        arm, against: one value a seed, None where the run gave no finite number.
        seeds: how many pairs were stated beforehand.
    """
    pairs = [(a, b) for a, b in zip(arm, against, strict=True) if a is not None and b is not None]
    if not pairs:
        return Verdict("not decidable", None, None, None, 0, 0, f"no seed of the {seeds} stated has finished")
    gains = [b - a if criterion.better == "lower" else a - b for a, b in pairs]
    ours, theirs = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    ratio = ours / theirs if theirs > 0 else None
    slack = bootstrap_interval([_slack(criterion, a, b) for a, b in pairs])
    missed = _missed(criterion, ratio, fmean(gains), sum(g > 0 for g in gains), len(gains))
    name, why = _judged(slack, missed, len(pairs), seeds)
    interval, wins = bootstrap_interval(gains), sum(g > 0 for g in gains)
    found = f"gain {fmean(gains):.4g} [{interval[0]:.4g}, {interval[1]:.4g}], better at {wins} of {len(pairs)} seeds"
    return Verdict(name, fmean(gains), interval, ratio, wins, len(pairs), f"{found}: {why}")


def overall(verdicts: Sequence[Verdict]) -> Name:
    """One verdict on several: confirmed only where all are, refuted where one is."""
    return next(name for name in GRAVEST if name in {v.name for v in verdicts})


def stated(criterion: Criterion) -> str:
    """The criterion as a sentence, as it was stated beforehand."""
    conditions = []
    if criterion.at_most_ratio is not None:
        conditions.append(f"at most {criterion.at_most_ratio:g} times as large")
    if criterion.at_least_gain is not None:
        conditions.append(f"better by at least {criterion.at_least_gain:g} on average")
    if criterion.all_seeds:
        conditions.append(f"{criterion.better} at every seed")
    return f"{criterion.metric} of {criterion.arm}, against {criterion.against}: {' and '.join(conditions)}"


def _slack(criterion: Criterion, ours: float, theirs: float) -> float:
    """How far the arm is on the right side at one seed, what the criterion allows counted in."""
    allowed = max(1.0, criterion.at_most_ratio or 1.0) * theirs
    gain = ours - theirs if criterion.better == "higher" else allowed - ours
    return gain - min(0.0, criterion.at_least_gain or 0.0)


def _missed(criterion: Criterion, ratio: float | None, gain: float, wins: int, pairs: int) -> list[str]:
    missed = []
    if criterion.at_most_ratio is not None and (ratio is None or ratio > criterion.at_most_ratio):
        was = "not defined" if ratio is None else f"{ratio:.4g}"
        missed.append(f"the ratio is {was}, not at most {criterion.at_most_ratio:g}")
    if criterion.at_least_gain is not None and gain < criterion.at_least_gain:
        missed.append(f"the gain is {gain:.4g}, not at least {criterion.at_least_gain:g}")
    if criterion.all_seeds and wins < pairs:
        missed.append(f"the arm is better at {wins} of {pairs} seeds, not at all")
    return missed


def _judged(slack: Interval, missed: list[str], pairs: int, seeds: int) -> tuple[Name, str]:
    needed = max(2, seeds)  # the interval of one value is a point
    if pairs < needed:
        return "not decidable", f"{pairs} of the {needed} seeds needed have finished in both arms"
    if slack[0] <= 0 <= slack[1]:
        return "not decidable", "the interval of what decides the direction covers zero"
    if slack[1] < 0:
        return "refuted", "the direction is the other one at every end of the interval"
    if missed:
        return "not confirmed", "the direction is right, but " + " and ".join(missed)
    return "confirmed", "the criterion is met"
