"""A fair comparison from start to report: a rate for each arm, then the same seeds for all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lrft.core.notes import say
from lrft.lab.compare.arms import check_comparable
from lrft.lab.compare.collected import LOSS, collect
from lrft.lab.compare.match import Matched, match
from lrft.lab.compare.record import Comparison
from lrft.lab.compare.search import joint, search_rates
from lrft.lab.compare.settings import By, Settings, check_seeds
from lrft.lab.models import Models
from lrft.lab.runs.local import Progress, run_all
from lrft.lab.runs.outcome import value
from lrft.lab.runs.planned import TUNING_SEED, Arm, PlannedRun, plan_run
from lrft.lab.runs.processes import threads
from lrft.registry.errors import NumericalError

BLOWN_UP = 16  # times the rank of the recipe: no paper's table goes that far from a method's own setting


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        arms: as they were run, ranks matched.
        runs: the verdict's runs of each arm, in the order of the seeds.
        record: everything as plain values, what report.json holds.
    """

    arms: list[Arm]
    runs: dict[str, list[PlannedRun]]
    record: Comparison


def compare_arms(arms: Sequence[Arm], settings: Settings, command: str = "", alone: bool = False) -> Compared:
    """Match, tune, run and count. Everything finished is kept in the settings' `out` and not run again.

    Args:
        command: what was typed, for the record.
        alone: one arm is enough.

    Raises:
        UsageError: the arms cannot be compared or matched.
        NumericalError: an arm diverges at every rate.
        LrftError, Interrupted: see `run_all`.
    """
    began = time.monotonic()
    rates, seeds, jobs, cluster = settings.rates, settings.seeds, settings.jobs, settings.cluster
    check_seeds(seeds)
    if len(arms) > 1 or not alone:
        check_comparable(arms)
    trusted = settings.trust_remote_code
    fitted, costs = match(arms, settings.by, Models(trusted))
    for line in (*cost_lines(costs, settings.by), *blown_up(costs)):
        say(line)
    tuned = len(rates) > 1
    tries = (settings.trials or len(rates)) if tuned else 0
    progress = Progress(len(fitted) * (len(seeds) + tries), jobs)
    finish = partial(run_all, jobs=jobs, progress=progress, cluster=cluster)
    tried, grid = _tune(fitted, settings, finish)
    chosen = choose_rates(fitted, tried, grid)
    runs = {
        arm.label: [plan_run(arm, chosen[arm.label], seed, settings.out, trusted) for seed in seeds]
        for arm in fitted
    }
    # Seed by seed, so that an interrupted comparison has whole pairs.
    finish([runs[arm.label][index] for index in range(len(seeds)) for arm in fitted])
    record: Comparison = {
        "command": command,
        "match": settings.by,
        "metric": LOSS,
        "rates": list(rates),
        "trials": settings.trials,
        "tuning_seed": TUNING_SEED if tuned else None,
        "seeds": list(seeds),
        "jobs": jobs,
        "cluster": cluster.name if cluster else None,
        "threads": None if cluster else threads(jobs),
        **collect(fitted, costs, tried, grid, chosen, runs),
        "seconds": round(time.monotonic() - began, 1),
    }
    return Compared(fitted, runs, record)


def choose_rates(
    arms: Sequence[Arm], tried: dict[str, list[float]], grid: dict[str, list[float | None]]
) -> dict[str, float]:
    """The rate of each arm: of its group's lowest mean loss; on a tie the smaller one.

    Args:
        tried: label -> rates, ascending; the same for arms of one group.
        grid: label -> loss at each rate, None where it diverged.

    Raises:
        NumericalError: at every rate an arm of the group diverged.
    """
    chosen: dict[str, float] = {}
    for group in dict.fromkeys(arm.group for arm in arms):
        members = [arm.label for arm in arms if arm.group == group]
        rates = tried[members[0]]
        losses = [joint(column) for column in zip(*(grid[label] for label in members), strict=True)]
        if len(rates) > 1 and not any(map(math.isfinite, losses)):
            listed = ", ".join(f"{rate:g}" for rate in rates)
            raise NumericalError(
                f"{' or '.join(members)} diverged at every rate of {listed}; the messages are in the logs of the "
                "runs; write smaller rates in the grid if it is the rate"
            )
        chosen |= dict.fromkeys(members, rates[losses.index(min(losses))])
    return chosen


def cost_lines(costs: Sequence[Matched], by: By) -> list[str]:
    """What each arm trains, and which ranks were changed."""
    first = costs[0]
    lines = []
    for cost in costs:
        changed = f", rank {cost.before} -> {cost.rank}" if cost.rank != cost.before else ""
        share = (
            f", {cost.trainable / first.trainable - 1:+.2%}" if cost is not first and first.trainable else ""
        )
        state = f", adapter and optimizer {cost.state_bytes:,} bytes" if by == "memory" else ""
        lines.append(f"{cost.label}: {cost.trainable:,} trainable{share}{state}{changed}")
    return lines


def blown_up(costs: Sequence[Matched]) -> list[str]:
    """What is said, before anything runs, of ranks that matching made many times larger than a recipe has them."""
    return [
        f"{cost.label}: rank {cost.rank:,} is {cost.rank / cost.before:.0f} times what its recipe has, so its runs "
        "will be slow and large; --match steps leaves the ranks as they are written"
        for cost in costs
        if cost.rank is not None and cost.before is not None and cost.rank > BLOWN_UP * cost.before
    ]


def _tune(
    arms: Sequence[Arm],
    settings: Settings,
    finish: Callable[[Sequence[PlannedRun]], None],
) -> tuple[dict[str, list[float]], dict[str, list[float | None]]]:
    """Rates tried for each label, ascending, and the loss at each on the tuning seed. A single rate is not tried."""

    def losses(points: Sequence[tuple[Arm, float]]) -> list[float | None]:
        trusted = settings.trust_remote_code
        runs = [plan_run(arm, rate, TUNING_SEED, settings.out, trusted) for arm, rate in points]
        finish(runs)
        return [value(run, LOSS) for run in runs]

    rates = settings.rates
    if settings.trials:
        return search_rates(arms, rates, settings.trials, losses)
    tried = {arm.label: list(rates) for arm in arms}
    if len(rates) == 1:
        return tried, {arm.label: [None] for arm in arms}
    found = iter(losses([(arm, rate) for arm in arms for rate in rates]))
    return tried, {arm.label: [next(found) for _ in rates] for arm in arms}
