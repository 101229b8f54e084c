"""What `lrft compare` asks for: recipes and overrides as written, a report in the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lrft.compare.comparison import By, compare_arms
from lrft.compare.plan import labels, make_arm, parse_rates, parse_seeds
from lrft.compare.report import table, write_report
from lrft.compare.runs import say
from lrft.core.errors import UsageError
from lrft.recipe.merge import is_override

BUDGETS = ("params", "memory", "steps")


def compare_recipes(arguments: Sequence[str], *, by: str, grid: str, seeds: str, out: Path, jobs: int) -> str:
    """Compare the recipes among the arguments under the overrides among them; returns the table.

    Raises:
        UsageError: a flag or the set of recipes makes no sense.
        RecipeError: a recipe is not valid.
        LrftError, Interrupted: see `lrft.compare.runs.run_all`.
    """
    if by not in BUDGETS:
        raise UsageError(f"--match {by}: choose {' or '.join(BUDGETS)}")
    rates, chosen = parse_rates(grid), parse_seeds(seeds)
    overrides = [argument for argument in arguments if is_override(argument)]
    sources = [argument for argument in arguments if not is_override(argument)]
    arms = [
        make_arm(label, source, overrides) for label, source in zip(labels(sources), sources, strict=True)
    ]
    compared = compare_arms(
        arms, by=cast(By, by), rates=rates, seeds=chosen, out=out, jobs=jobs, command=command_line()
    )
    say(f"report: {write_report(compared.record, out, ' against '.join(arm.label for arm in arms))}")
    return "\n".join(table(compared.record))


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
