"""What the seeds say about a criterion that was stated beforehand. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lrft.lab.compare.statistics import Interval, bootstrap_interval, crossed_interval
from lrft.lab.runs.outcome import Value
from lrft.lab.tables.criterion import Criterion
from lrft.lab.tables.everywhere import count_keys
from lrft.registry.config import Literal

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

OF_ROWS: dict[str, Callable[[float], float]] = {"eval_loss": float, "eval_perplexity": math.exp}


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


def judge_criterion(
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
    ratio = counted.ours / counted.theirs if counted.theirs > 0 else None
    means = f"mean {counted.ours:.4g} against {counted.theirs:.4g}"
    means += "" if ratio is None else f", ratio {ratio:.4g}"
    return Verdict(
        name,
        fmean(counted.gains),
        bootstrap_interval(counted.gains),
        ratio,
        counted.better,
        counted.keys,
        f"{counts}; {means}: {why}",
    )
