"""What `lrft compare` asks for: recipes and overrides as written, a report in the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lrft.compare.cluster import Cluster
from lrft.compare.comparison import By, compare_arms
from lrft.compare.plan import labels, make_arm, parse_rates, parse_seeds
from lrft.compare.report import write_report
from lrft.compare.search import check_search
from lrft.core.errors import UsageError
from lrft.core.notes import say
from lrft.recipe.merge import is_override

BUDGETS = ("params", "memory", "steps")


def compare_recipes(
    arguments: Sequence[str],
    *,
    by: str,
    grid: str,
    seeds: str,
    out: Path,
    jobs: int,
    trials: int = 0,
    cluster: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare the recipes among the arguments under the overrides among them; returns the record.

    Args:
        trials: rates proposed for each recipe between the ends of `grid`, in place of `grid` itself.
        cluster: where runs are made, see `lrft.compare.cluster.Cluster`; by default as processes of this machine.
        settings: of the cluster.

    Raises:
        UsageError: a flag or the set of recipes makes no sense.
        RecipeError: a recipe is not valid.
        MissingExtra: submitit or Optuna is needed and not installed.
        LrftError, Interrupted: see `lrft.compare.runs.run_all`.
    """
    if by not in BUDGETS:
        raise UsageError(f"--match {by}: choose {' or '.join(BUDGETS)}")
    rates, chosen = parse_rates(grid), parse_seeds(seeds)
    if trials:
        check_search(rates, trials)
    if settings and cluster is None:
        raise UsageError(
            f"--cluster-set {settings[0]}: there is no cluster to set it for; add --cluster slurm"
        )
    overrides = [argument for argument in arguments if is_override(argument)]
    sources = [argument for argument in arguments if not is_override(argument)]
    arms = [
        make_arm(label, source, overrides) for label, source in zip(labels(sources), sources, strict=True)
    ]
    compared = compare_arms(
        arms,
        by=cast(By, by),
        rates=rates,
        seeds=chosen,
        out=out,
        jobs=jobs,
        command=command_line(),
        trials=trials,
        cluster=None if cluster is None else Cluster(cluster, settings, out, jobs),
    )
    say(f"report: {write_report(compared.record, out, ' against '.join(arm.label for arm in arms))}")
    return compared.record


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
