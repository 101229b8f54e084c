"""`lrft train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, Quiet, result
from lrft.core.notes import silence


def train_command(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, or the name of a packaged one.", autocompletion=recipe_names)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default a new one under runs/.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or the latest of this recipe.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; load no weights.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the model. Recorded in the run."),
    ] = False,
) -> None:
    """Train a recipe.

    Example: lrft train quickstart train.max_steps=20 --out runs/try
    """
    from lrft.recipe.load import load_recipe

    silence(quiet)
    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from lrft.jobs.plan import plan_recipe, show_plan

        result(plan_recipe(loaded, trust_remote_code), as_json, show_plan)
        return
    from lrft.jobs.train import train_recipe

    result(train_recipe(loaded, out, resume, trust_remote_code), as_json, _show)


def _show(found: dict[str, Any]) -> None:
    loss = "no loss recorded" if found["loss"] is None else f"loss {found['loss']:.4f}"
    print(f"{found['name']}: step {found['step']}, {loss}")
