"""`lrft train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.complete import recipe_names


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the model. Recorded in the run."),
    ] = False,
) -> None:
    """Train a recipe.

    Example: lrft train quickstart train.max_steps=20 --out runs/try
    """
    from lrft.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from lrft.jobs.plan import plan_recipe, show_plan

        plan = plan_recipe(loaded, trust_remote_code)
        print(json.dumps(plan, indent=2)) if as_json else show_plan(plan)
        return
    from lrft.jobs.train import train_recipe

    result = train_recipe(loaded, out, resume, trust_remote_code)
    if result:
        print(
            json.dumps(result, indent=2)
            if as_json
            else f"{result['name']}: step {result['step']}, loss {result['loss']:.4f}"
        )
