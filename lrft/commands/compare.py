"""`lrft compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Recipes, then overrides that hold for all."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of runs and report; the same one goes on.")],
    match: Annotated[
        str,
        typer.Option(help="Make ranks equal by `params` or `memory`, or `steps` alone.", metavar="BUDGET"),
    ] = "params",
    lr_grid: Annotated[str, typer.Option(help="Rates that every recipe is tried at.")] = "1e-4,3e-4,1e-3",
    seeds: Annotated[str, typer.Option(help="How many, or which: 3 is 0,1,2; 10-14; 5,7.")] = "3",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    """Compare recipes fairly: equal budgets, a tuned rate each, the same seeds.

    Example: lrft compare a.yaml b.yaml train.max_steps=100 --out compared
    """
    from lrft.compare.command import compare_recipes

    report = compare_recipes(arguments, by=match, grid=lr_grid, seeds=seeds, out=out, jobs=jobs)
    print(report)
