"""`lrft find-lr`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Overrides, RecipeName
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.planning.find_lr import Found

LINES = 12  # of the table, about


def find_lr_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    low: Annotated[float, typer.Option("--from", help="First rate.", metavar="RATE")] = 1e-6,
    high: Annotated[float, typer.Option("--to", help="Last rate.", metavar="RATE")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps, each at a higher rate.")] = 100,
    plot: Annotated[
        Path | None, typer.Option(help="Draw losses over rates into this file.", metavar="FILE.png")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a learning rate: train for a few steps at rising rates until the loss blows up. Leaves no run.

    Example: lrft find-lr quickstart --plot rates.png
    """
    from lrft.api.planning.find_lr import find_lr
    from lrft.recipe.load import load_recipe

    silence(quiet)
    loaded = load_recipe(recipe, overrides or [])
    result(find_lr(loaded, low, high, steps, plot, trust_remote_code), as_json, _show)


def _show(found: Found) -> None:
    """Rates with the mean loss around them, and what they suggest."""
    from rich.table import Table

    from lrft.training.rate_choice import half_window, means

    rates = found["rates"]
    smooth = means(found["losses"], half_window(len(rates)))
    table = Table("rate", "loss")
    every = max(1, len(rates) // LINES)
    for place in sorted({*range(0, len(rates), every), len(rates) - 1}):
        table.add_row(f"{rates[place]:.2g}", f"{smooth[place]:.4f}")
    show_table(table)
    print(found["why"])
    if found["suggested"] is not None:
        print(f"suggested: optimizer.lr={found['suggested']:g}")
