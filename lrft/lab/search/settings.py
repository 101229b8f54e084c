"""How a search is made, as the words of a command line say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.lab.runs.executor import Executor
from lrft.lab.runs.where import place_runs
from lrft.lab.search.front import COSTS, Cost
from lrft.recipe.method_words import parse_named
from lrft.registry.axes import SEARCHES
from lrft.registry.config import MethodConfig
from lrft.registry.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What a search is made with.

    Attributes:
        out: folder of runs, lines and report.
        budget: arms in all.
        method: settings of the search.
        metric: see `lrft.lab.runs.judged`.
        against: the cost that is traded for the score.
        seed: of the search; the arms' own is in the recipe.
        jobs: runs at a time.
        keep_checkpoints: of every run, and not its adapter alone.
        cluster: where runs are made; None for processes of this machine.
        trust_remote_code: let code run that comes with the base model.
    """

    out: Path
    budget: int
    method: MethodConfig
    metric: str = "eval_loss"
    against: Cost = "trainable"
    seed: int = 0
    jobs: int = 1
    keep_checkpoints: bool = False
    cluster: Executor | None = None
    trust_remote_code: bool = False


def parse_settings(
    out: Path,
    *,
    budget: int,
    method: str = "random",
    metric: str = "eval_loss",
    against: str = "trainable",
    seed: int = 0,
    jobs: int = 1,
    keep_checkpoints: bool = False,
    cluster: str | None = None,
    cluster_settings: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Settings:
    """The settings that the words of a command line mean.

    Args:
        method: a name, or `{method: NAME, ...}` as recipes write sections.
        cluster: see `lrft.lab.runs.where.place_runs`.

    Raises:
        UsageError: names the flag that makes no sense.
        MissingExtra: submitit or Ray is needed and not installed.
    """
    cost = next((known for known in COSTS if known == against), None)
    if cost is None:
        raise UsageError(f"--against {against}: choose {' or '.join(COSTS)}")
    executor = place_runs(cluster, cluster_settings, out, jobs)
    chosen = parse_method(method)
    return Settings(
        out, budget, chosen, metric, cost, seed, jobs, keep_checkpoints, executor, trust_remote_code
    )


def parse_method(text: str) -> MethodConfig:
    """The settings of the search that is named.

    Raises:
        UsageError, RecipeError: as `parse_named`.
    """
    return parse_named(SEARCHES, text)
