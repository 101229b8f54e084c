"""A criterion that was stated beforehand, and what the seeds say about it. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lrft.compare.everywhere import Keyed, count_keys
from lrft.compare.statistics import Interval, bootstrap_interval, crossed_interval
from lrft.core.config import Field, Literal, Section, model_validator

Name = Literal["confirmed", "not confirmed", "refuted", "not decidable", "method not in lrft yet"]
# The verdict on several criteria is the first of these that any of them has.
GRAVEST: tuple[Name, ...] = (
    "refuted",
    "not decidable",
    "not confirmed",
    "confirmed",
    "method not in lrft yet",
)
ABSENT: Name = "method not in lrft yet"

Value = float | Keyed | None
OF_ROWS: dict[str, Callable[[float], float]] = {"eval_loss": float, "eval_perplexity": math.exp}


class Criterion(Section):
    """What one arm must show against another. All conditions that are written must hold."""

    metric: str = Field(
        "eval_loss",
        min_length=1,
        description="key of metrics.jsonl at the last step, `KEY@STEP` at that step, or dotted key of result.json",
    )
    against_metric: str | None = Field(
        None,
        min_length=1,
        description="what of the other arm it is compared with, where that is another metric",
    )
    better: Literal["lower", "higher"] = "lower"
    arm: str = Field(min_length=1, description="label of the arm that the claim is about")
    against: str = Field(min_length=1, description="label of the arm it is compared with")
    at_most_ratio: float | None = Field(
        None, gt=0, description="largest mean of arm / mean of against; above 1 for `not much worse than`"
    )
    at_least_ratio: float | None = Field(
        None, gt=1, description="smallest mean of arm / mean of against, for better: higher"
    )
    at_least_gain: float | None = Field(
        None, description="smallest mean gain, in the metric's unit; below 0 for `not much worse than`"
    )
    all_seeds: bool = Field(False, description="the arm must be better at every seed")
    everywhere: bool = Field(
        False, description="of a metric with keys (layers, steps): no worse at any key of any seed"
    )

    @model_validator(mode="after")
    def _decides_something(self) -> Criterion:
        ratios = [self.at_most_ratio, self.at_least_ratio, self.at_least_gain]
        if all(one is None for one in ratios) and not self.all_seeds and not self.everywhere:
            raise ValueError(
                "needs a condition: at_most_ratio, at_least_ratio, at_least_gain, all_seeds: true or everywhere: true"
            )
        if self.everywhere and (self.all_seeds or any(one is not None for one in ratios)):
            raise ValueError("everywhere stands alone; write other conditions as criteria of their own")
        if self.at_most_ratio is not None and self.better == "higher":
            raise ValueError(
                "at_most_ratio is for better: lower; use at_least_ratio, or swap arm and against"
            )
        if self.at_least_ratio is not None and self.better == "lower":
            raise ValueError(
                "at_least_ratio is for better: higher; use at_most_ratio, or swap arm and against"
            )
        if self.arm == self.against and self.against_metric in (None, self.metric):
            raise ValueError(
                f"arm and against are both {self.arm!r}; name two arms, or another against_metric"
            )
        return self

    @property
    def other_metric(self) -> str:
        """The metric of the arm it is compared with."""
        return self.against_metric or self.metric


@dataclass(frozen=True)
class Verdict:
    """The answer to one criterion.

    Attributes:
        gain: mean over the seeds of how much better the arm was; None without a seed.
        interval: bootstrap interval of the gain, over seeds, and over held-out rows too where runs kept them.
        ratio: mean of arm / mean of against; None where that is not defined.
        wins, pairs: seeds at which the arm was better, of how many both arms finished; keys where it is `everywhere`.
        reason: one sentence.
    """

    name: Name
    gain: float | None
    interval: Interval | None
    ratio: float | None
    wins: int
    pairs: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """Summed losses of two arms on the same held-out rows, (seeds, rows), and tokens of each row."""

    arm: list[list[float]]
    against: list[list[float]]
    tokens: list[int]


def absent(labels: Sequence[str]) -> Verdict:
    """The verdict on arms that need a method lrft does not have."""
    return Verdict(ABSENT, None, None, None, 0, 0, f"{' and '.join(labels)}: {ABSENT}")


def verdict(
    criterion: Criterion, arm: Sequence[Value], against: Sequence[Value], seeds: int, rows: Rows | None = None
) -> Verdict:
    """Judge a criterion by the two arms' values, seed by seed.

    *confirmed*: every condition holds, and the direction is certain. *not confirmed*: the direction is right and
    certain, a condition is missed. *refuted*: the direction is wrong and certain. *not decidable*: fewer than
    `seeds` pairs, fewer than two, or the interval covers zero. Where the criterion allows the arm to be worse by
    so much (a ratio above 1, a gain below 0), direction is counted from there.

    `everywhere`: *confirmed* where the arm is worse at no key and better at one, *refuted* where the mean over the keys
    is worse at every seed, *not confirmed* in between.

    Args:
        arm, against: one value a seed, None where the run gave no finite number.
        seeds: how many pairs were stated beforehand.
        rows: losses of held-out rows, where the metric is made of them and both arms kept them.

    Raises:
        ValueError: keys differ between the arms, or a keyed metric meets a criterion that is not `everywhere`.
    """
    if criterion.everywhere:
        return _everywhere(criterion, arm, against, seeds)
    pairs = [
        (_number(a), _number(b)) for a, b in zip(arm, against, strict=True) if not (a is None or b is None)
    ]
    if not pairs:
        return Verdict("not decidable", None, None, None, 0, 0, f"no seed of the {seeds} stated has finished")
    gains = [b - a if criterion.better == "lower" else a - b for a, b in pairs]
    ours, theirs = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    ratio = ours / theirs if theirs > 0 else None
    interval, slack = _intervals(criterion, pairs, gains, rows)
    wins = sum(g > 0 for g in gains)
    missed = _missed(criterion, ours, theirs, fmean(gains), wins, len(gains))
    name, why = _judged(slack, missed, len(pairs), seeds)
    found = f"gain {fmean(gains):.4g} [{interval[0]:.4g}, {interval[1]:.4g}], better at {wins} of {len(pairs)} seeds"
    if ratio is not None:
        found = f"{ours:.4g} against {theirs:.4g}, ratio {ratio:.4g}; {found}"
    return Verdict(name, fmean(gains), interval, ratio, wins, len(pairs), f"{found}: {why}")


def overall(verdicts: Sequence[Verdict]) -> Name:
    """One verdict on several: confirmed where all are, refuted where one is; what waits for a method is left out."""
    return next(name for name in GRAVEST if name in {v.name for v in verdicts})


def stated(criterion: Criterion) -> str:
    """The criterion as a sentence, as it was stated beforehand."""
    conditions = []
    if criterion.at_most_ratio is not None:
        conditions.append(f"at most {criterion.at_most_ratio:g} times as large")
    if criterion.at_least_ratio is not None:
        conditions.append(f"at least {criterion.at_least_ratio:g} times as large")
    if criterion.at_least_gain is not None:
        conditions.append(f"better by at least {criterion.at_least_gain:g} on average")
    if criterion.all_seeds:
        conditions.append(f"{criterion.better} at every seed")
    if criterion.everywhere:
        opposite = {"lower": "higher", "higher": "lower"}[criterion.better]
        conditions.append(f"{opposite} nowhere")
    other = f"{criterion.against_metric} of " if criterion.against_metric else ""
    return f"{criterion.metric} of {criterion.arm}, against {other}{criterion.against}: {' and '.join(conditions)}"


def _number(value: Value) -> float:
    if not isinstance(value, int | float):
        raise ValueError("the metric has a number for each key; write everywhere: true, or one key of it")
    return float(value)


def _intervals(
    criterion: Criterion, pairs: Sequence[tuple[float, float]], gains: Sequence[float], rows: Rows | None
) -> tuple[Interval, Interval]:
    """Of the gain, and of what decides the direction."""
    if rows is None or criterion.metric not in OF_ROWS or criterion.against_metric:
        return bootstrap_interval(gains), bootstrap_interval([_slack(criterion, a, b) for a, b in pairs])
    of = OF_ROWS[criterion.metric]
    tables = rows.arm, rows.against, rows.tokens
    return (
        crossed_interval(
            *tables, lambda a, b: of(b) - of(a) if criterion.better == "lower" else of(a) - of(b)
        ),
        crossed_interval(*tables, lambda a, b: _slack(criterion, of(a), of(b))),
    )


def _slack(criterion: Criterion, ours: float, theirs: float) -> float:
    """How far the arm is on the right side at one seed, what the criterion allows counted in."""
    allowed = max(1.0, criterion.at_most_ratio or 1.0) * theirs
    gain = ours - theirs if criterion.better == "higher" else allowed - ours
    return gain - min(0.0, criterion.at_least_gain or 0.0)


def _missed(
    criterion: Criterion, ours: float, theirs: float, gain: float, wins: int, pairs: int
) -> list[str]:
    missed = []
    ratio = ours / theirs if theirs > 0 else None
    was = "not defined" if ratio is None else f"{ratio:.4g}"
    if criterion.at_most_ratio is not None and (ratio is None or ratio > criterion.at_most_ratio):
        missed.append(f"the ratio is {was}, not at most {criterion.at_most_ratio:g}")
    # Nothing against something is as large a ratio as there can be.
    if criterion.at_least_ratio is not None and ours < criterion.at_least_ratio * max(theirs, 0.0):
        missed.append(f"the ratio is {was}, not at least {criterion.at_least_ratio:g}")
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


def _everywhere(criterion: Criterion, arm: Sequence[Value], against: Sequence[Value], seeds: int) -> Verdict:
    """Every key of every seed; nothing is estimated, so one seed may be enough."""
    pairs = [(a, b) for a, b in zip(arm, against, strict=True) if not (a is None or b is None)]
    if any(isinstance(one, int | float) for pair in pairs for one in pair):
        raise ValueError(f"{criterion.metric} has no keys; leave everywhere out, or name a metric that has")
    if len(pairs) < seeds:
        why = f"{len(pairs)} of the {seeds} seeds needed have finished in both arms"
        return Verdict("not decidable", None, None, None, 0, 0, why)
    counted = count_keys(
        [a for a, _ in pairs if isinstance(a, dict)],
        [b for _, b in pairs if isinstance(b, dict)],
        1 if criterion.better == "lower" else -1,
    )
    name: Name
    if counted.worse == 0 and counted.better:
        name, why = "confirmed", "the criterion is met"
    elif max(counted.gains) < 0:
        name, why = "refuted", f"on average the arm is worse at every seed, most at {counted.worst}"
    else:
        name, why = "not confirmed", f"not everywhere: least at {counted.worst}"
    counts = f"better at {counted.better}, equal at {counted.equal}, worse at {counted.worse} of {counted.keys} keys"
    interval = bootstrap_interval(counted.gains)
    reason = f"{counts}; mean gain {fmean(counted.gains):.4g}: {why}"
    return Verdict(name, fmean(counted.gains), interval, None, counted.better, counted.keys, reason)
