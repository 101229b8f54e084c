"""Learning rates that Optuna proposes, in place of a grid: the same number of trials for every arm, on one seed.

The first trials of every arm are evenly spaced from end to end; the others are proposed one after the other, each from
the losses before it. So they depend on nothing but those: not on how many runs there are at a time, nor on what was
interrupted. There is no database; a second search proposes the same rates and finds their runs finished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from lrft.lab.runs.planned import Arm
from lrft.registry.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from optuna import Study

RATE = "rate"
SAMPLER_SEED = 0
SPACED = (
    4  # trials before the sampler's own; the same for any number of trials, so that a longer search goes on
)
DIGITS = 3  # of a rate, significant ones: what names a run's folder

Losses = Callable[[Sequence[tuple[Arm, float]]], list[float | None]]


def search_rates(
    arms: Sequence[Arm], rates: Sequence[float], trials: int, losses: Losses
) -> tuple[dict[str, list[float]], dict[str, list[float | None]]]:
    """Rates tried for each label, ascending, and the loss at each. Arms of one group are tried at the same rates.

    Args:
        rates: the search is log-uniform between the smallest and the largest.
        losses: the loss of each arm at its rate, None where it diverged; called once a trial, with every arm.

    Raises:
        MissingExtra: Optuna is not installed.
        UsageError: too few trials, or a single rate to search between.
    """
    low, high = check_search(rates, trials)
    studies = {group: _study(low, high) for group in dict.fromkeys(arm.group for arm in arms)}
    found: dict[str, dict[float, float | None]] = {arm.label: {} for arm in arms}
    for _ in range(trials):
        asked = {group: study.ask() for group, study in studies.items()}
        proposed = {
            group: _round(trial.suggest_float(RATE, low, high, log=True), low, high)
            for group, trial in asked.items()
        }
        got = losses([(arm, proposed[arm.group]) for arm in arms])
        for arm, loss in zip(arms, got, strict=True):
            found[arm.label][proposed[arm.group]] = loss
        for group, study in studies.items():
            column = [loss for arm, loss in zip(arms, got, strict=True) if arm.group == group]
            study.tell(asked[group], joint(column))
    tried = {label: sorted(points) for label, points in found.items()}
    return tried, {label: [points[rate] for rate in tried[label]] for label, points in found.items()}


def check_search(rates: Sequence[float], trials: int) -> tuple[float, float]:
    """The ends of the search.

    Raises:
        UsageError: too few trials, or a single rate to search between.
    """
    if trials < SPACED:
        raise UsageError(
            f"--lr-search {trials}: needs {SPACED} trials or more; fewer rates are better listed in a grid"
        )
    if min(rates) == max(rates):
        raise UsageError(
            f"--lr-grid {rates[0]:g}: --lr-search needs two rates to search between, such as 1e-5,1e-2"
        )
    return min(rates), max(rates)


def joint(losses: Sequence[float | None]) -> float:
    """The mean loss of arms that share a rate; infinite if one diverged."""
    return math.inf if None in losses else fmean(loss for loss in losses if loss is not None)


def _round(rate: float, low: float, high: float) -> float:
    return min(max(float(f"{rate:.{DIGITS}g}"), low), high)


def _study(low: float, high: float) -> Study:
    """A study in memory, with its first trials in the queue.

    Raises:
        MissingExtra: Optuna is not installed; the message holds the install line.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtra(
            "--lr-search: rates are proposed by Optuna; install it with `pip install 'lrft[search]'`, or leave "
            "the flag out to try every rate of --lr-grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SAMPLER_SEED, n_startup_trials=SPACED)
    study = optuna.create_study(sampler=sampler)
    for at in range(SPACED):
        study.enqueue_trial({RATE: _round(low * (high / low) ** (at / (SPACED - 1)), low, high)})
    return study
