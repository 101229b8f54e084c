"""Which arms are worth their cost: none is better at no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from lrft.core.search import Trial
from lrft.lab.runs.judged import Metric
from lrft.lab.search.state import Line

Cost = Literal["trainable", "bytes", "step_seconds"]
COSTS: tuple[Cost, ...] = get_args(Cost)


def trial_of(line: Line, metric: Metric, against: Cost) -> Trial:
    """What a search is told of an arm: its losses, both to be small."""
    score = line.score
    if score is None:
        return Trial(tuple(line.genes), None)
    return Trial(tuple(line.genes), (-score if metric.higher else score, cost_of(line, against)))


def cost_of(line: Line, cost: Cost) -> float:
    """A cost of an arm; infinite where it is not known."""
    found: float | None = getattr(line, cost)
    return math.inf if found is None else found


def front(trials: Sequence[Trial]) -> list[int]:
    """The places of the trials that no other dominates, in order of their cost; those without a score are on no front.

    One dominates another where both losses are at most the other's and one is less. Of equal ones the first counts.
    """
    places = [place for place, trial in enumerate(trials) if trial.losses is not None]
    found: list[int] = []
    best = math.inf
    for place in sorted(places, key=lambda place: (*_turned(trials[place]), place)):
        score = _turned(trials[place])[1]
        if score < best:
            best = score
            found.append(place)
    return found


def _turned(trial: Trial) -> tuple[float, float]:
    """Cost and score."""
    assert trial.losses is not None, "left out before"
    return trial.losses[1], trial.losses[0]
