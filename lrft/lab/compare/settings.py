"""How arms are compared: said once, for the command, for `compare_recipes` and for tables that replay a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lrft.lab.compare.search import check_search
from lrft.lab.runs.executor import Executor
from lrft.lab.runs.planned import TUNING_SEED
from lrft.lab.runs.where import place_runs
from lrft.registry.errors import UsageError

By = Literal["params", "memory", "steps"]


@dataclass(frozen=True)
class Settings:
    """What a comparison is made with.

    Attributes:
        out: folder of runs and report.
        rates: learning rates that every arm is tried at, ascending; one is not tried, but used.
        seeds: of the runs that the verdict is on.
        by: what ranks are made equal by.
        jobs: runs at a time.
        trials: rates proposed for each arm between the ends of `rates`, in place of `rates` themselves.
        cluster: where runs are made; None for processes of this machine.
        trust_remote_code: let code run that comes with a base model.
    """

    out: Path
    rates: Sequence[float]
    seeds: Sequence[int]
    by: By = "params"
    jobs: int = 1
    trials: int = 0
    cluster: Executor | None = None
    trust_remote_code: bool = False


def parse_settings(
    out: Path,
    *,
    by: str = "params",
    rates: str = "1e-4,3e-4,1e-3",
    seeds: str = "3",
    jobs: int = 1,
    trials: int | None = None,
    cluster: str | None = None,
    cluster_settings: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Settings:
    """The settings that the words of a command line mean.

    Args:
        cluster: see `lrft.lab.runs.where.place_runs`.

    Raises:
        UsageError: names the flag that makes no sense.
        MissingExtra: submitit, Ray or Optuna is needed and not installed.
    """
    if by not in get_args(By):
        raise UsageError(f"--match {by}: choose {' or '.join(get_args(By))}")
    tried, chosen = parse_rates(rates), parse_seeds(seeds)
    if trials:
        check_search(tried, trials)
    executor = place_runs(cluster, cluster_settings, out, jobs)
    match: By = next(word for word in get_args(By) if word == by)
    return Settings(out, tried, chosen, match, jobs, trials or 0, executor, trust_remote_code)


def parse_rates(text: str) -> list[float]:
    """`1e-4,3e-4,1e-3` -> the rates, ascending.

    Raises:
        UsageError: not a list of different positive numbers.
    """
    try:
        rates = sorted(float(part) for part in text.split(","))
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise UsageError(f"--lr-grid {text}: write different positive numbers such as 1e-4,3e-4,1e-3")
    return rates


def parse_seeds(text: str) -> list[int]:
    """`3` -> 0, 1, 2; `10-14` -> 10 to 14; `5,7` and `5,` -> these seeds.

    Raises:
        UsageError: none of these forms, or one is the seed that rates are chosen on.
    """
    try:
        if "," in text:
            seeds = [int(part) for part in text.split(",") if part.strip()]
        elif "-" in text:
            first, last = map(int, text.split("-"))
            seeds = list(range(first, last + 1))
        else:
            seeds = list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text}: write how many (3), a range (10-14), or a list (5,7)")
    check_seeds(seeds)
    return seeds


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse the seed that rates are chosen on.

    Raises:
        UsageError: it is among the seeds of the verdict.
    """
    if TUNING_SEED in seeds:
        raise UsageError(f"--seeds: {TUNING_SEED} is the seed that rates are chosen on; leave it out")
