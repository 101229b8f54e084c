"""`lrft recipes`: list, read, copy, check and compare recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.complete import recipe_names

app = typer.Typer(no_args_is_help=True, help="List, read, copy, check and compare recipes.")

Name = Annotated[str, typer.Argument(help="Packaged recipe or file.", autocompletion=recipe_names)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes.")]


@app.command("ls")
def ls_command() -> None:
    """List the packaged recipes."""
    from lrft.recipe import library

    typer.echo("\n".join(library.names()))


@app.command("show")
def show_command(
    name: Name,
    overrides: Overrides = None,
    origins: Annotated[bool, typer.Option("--origins", help="Say where each value comes from.")] = False,
) -> None:
    """Print a recipe with every default spelled out.

    Example: lrft recipes show quickstart train.seed=1 --origins
    """
    from lrft.recipe.load import load_recipe
    from lrft.recipe.resolved import resolved, with_origins

    loaded = load_recipe(name, overrides or [])
    typer.echo(with_origins(loaded) if origins else resolved(loaded.recipe), nl=False)


@app.command("cp")
def cp_command(
    name: Name, destination: Annotated[Path, typer.Argument(help="New file, or a folder.")]
) -> None:
    """Copy a packaged recipe, to change it.

    Example: lrft recipes cp quickstart mine.yaml
    """
    from lrft.recipe import library

    typer.echo(library.copy(name, destination))


@app.command("validate")
def validate_command(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE...]", help="Recipes, overrides.")
    ],
) -> None:
    """Check recipes without training; exits with 2 when one has a problem.

    Example: lrft recipes validate mine.yaml train.max_steps=10
    """
    from lrft.core.errors import RecipeError
    from lrft.recipe.load import validate

    problems = []
    for file, found in validate(arguments):
        problems += found
        if not found:
            typer.echo(f"{file}: ok")
    if problems:
        raise RecipeError(problems)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of a recipe, for editors."""
    import json

    from lrft.recipe.json_schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command("diff")
def diff_command(a: Name, b: Name) -> None:
    """Print the settings in which two recipes differ, defaults included.

    Example: lrft recipes diff smollm2-gsm8k-dora mine.yaml
    """
    from lrft.recipe.load import load_recipe
    from lrft.recipe.resolved import compare

    for key, left, right in compare(load_recipe(a).recipe, load_recipe(b).recipe):
        typer.echo(f"{key}: {left} -> {right}")
