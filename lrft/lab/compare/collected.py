"""What the runs of a comparison gave, as one record an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from lrft.lab.compare.arms import differences
from lrft.lab.compare.match import Matched
from lrft.lab.compare.record import ArmRecord, Costs, DifferenceRecord, Found
from lrft.lab.compare.statistics import bootstrap_interval, paired
from lrft.lab.runs.outcome import result, set_ups_of, value
from lrft.lab.runs.planned import Arm, PlannedRun
from lrft.registry.json import Json

LOSS = "eval_loss"  # of the last step


def collect(
    arms: Sequence[Arm],
    costs: Sequence[Matched],
    tried: dict[str, list[float]],
    grid: dict[str, list[float | None]],
    chosen: dict[str, float],
    runs: dict[str, list[PlannedRun]],
) -> Found:
    """What the runs gave: one record an arm, the first being what the others are compared with."""
    losses = {arm.label: [value(run, LOSS) for run in runs[arm.label]] for arm in arms}
    rows: list[ArmRecord] = []
    for arm, cost in zip(arms, costs, strict=True):
        rate, rates, mine = chosen[arm.label], tried[arm.label], losses[arm.label]
        finite = [loss for loss in mine if loss is not None]
        rows.append(
            {
                "label": cost.label,
                "rank": cost.rank,
                "before": cost.before,
                "trainable": cost.trainable,
                "state_bytes": cost.state_bytes,
                "recipe": arm.source,
                "overrides": list(arm.overrides),
                "rate": rate,
                "rate_at_edge": len(rates) > 1 and rate in (rates[0], rates[-1]),
                "grid": [{"rate": r, "loss": loss} for r, loss in zip(rates, grid[arm.label], strict=True)],
                "losses": mine,
                "mean": fmean(finite) if finite else None,
                "interval": bootstrap_interval(finite) if finite else None,
                "difference": None if arm is arms[0] else _difference(mine, losses[arms[0].label]),
                **_measure_costs([result(run) for run in runs[arm.label]]),
            }
        )
    return {
        "differences": {"arms": [arm.label for arm in arms], "keys": differences(arms)},
        "arms": rows,
        "environments": set_ups_of(run for of_arm in runs.values() for run in of_arm),
    }


def _difference(mine: Sequence[float | None], first: Sequence[float | None]) -> DifferenceRecord | None:
    """The paired difference over the seeds that both arms finished."""
    pairs = [(a, b) for a, b in zip(mine, first, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    found = paired([a for a, _ in pairs], [b for _, b in pairs])
    return {
        "mean": found.mean,
        "interval": found.interval,
        "lower": found.lower,
        "higher": found.higher,
        "pairs": found.pairs,
        "p": found.p,
    }


def _measure_costs(results: Sequence[Mapping[str, Json]]) -> Costs:
    """Costs over an arm's runs: time is their mean, memory and sizes the largest; what training itself counted."""

    def values(key: str) -> list[float]:
        return [number for found in results if isinstance(number := found.get(key), int | float)]

    def most(key: str) -> float | None:
        return max(values(key), default=None)

    def mean(key: str) -> float | None:
        found = values(key)
        return round(fmean(found), 1) if found else None

    return {
        "run_seconds": mean("seconds"),
        "step_seconds": mean("step_seconds"),
        "peak_memory_bytes": most("peak_memory_bytes"),
        "adapter_bytes": most("adapter_bytes"),
        "checkpoint_bytes": most("checkpoint_bytes"),
        "trained": most("trainable"),
    }
