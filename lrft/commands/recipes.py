"""`lrft recipes`: list, read, copy, check and compare recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.arguments import Overrides
from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, result
from lrft.registry.errors import Problem, RecipeError
from lrft.registry.json import Json as Value

app = typer.Typer(no_args_is_help=True, help="List, read, copy, check and compare recipes.")

Name = Annotated[str, typer.Argument(help="Packaged recipe or file.", autocompletion=recipe_names)]


@app.command("ls")
def ls_command(as_json: Json = False) -> None:
    """List the packaged recipes."""
    from lrft.recipe import library

    result(library.names(), as_json, lambda names: print("\n".join(names)))


@app.command("show")
def show_command(
    name: Name,
    overrides: Overrides = None,
    origins: Annotated[bool, typer.Option("--origins", help="Say where each value comes from.")] = False,
    as_json: Json = False,
) -> None:
    """Print a recipe with every default spelled out.

    Example: lrft recipes show quickstart train.seed=1 --origins
    """
    from lrft.recipe.load import load_recipe
    from lrft.recipe.resolved import resolved, with_origins

    loaded = load_recipe(name, overrides or [])
    plain = loaded.recipe.model_dump(mode="json")
    text = with_origins(loaded) if origins else resolved(loaded.recipe)
    document = {"recipe": plain, "origins": loaded.origins} if origins else plain
    result(document, as_json, lambda _: print(text, end=""))


@app.command("cp")
def cp_command(
    name: Name,
    destination: Annotated[Path, typer.Argument(help="New file, or a folder.")],
    as_json: Json = False,
) -> None:
    """Copy a packaged recipe, to change it.

    Example: lrft recipes cp quickstart mine.yaml
    """
    from lrft.recipe import library

    result({"file": str(library.copy(name, destination))}, as_json, lambda copy: print(copy["file"]))


@app.command("validate")
def validate_command(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE...]", help="Recipes, overrides.")
    ],
    as_json: Json = False,
) -> None:
    """Check recipes without training; exits with 2 when one has a problem.

    Example: lrft recipes validate mine.yaml train.max_steps=10
    """
    from lrft.recipe.load import validate

    found = validate(arguments)
    checked = [
        {"recipe": recipe, "ok": not problems, "problems": [problem.record() for problem in problems]}
        for recipe, problems in found
    ]
    result({"recipes": checked}, as_json, lambda _: _show_good(found))
    if problems := [problem for _, of_one in found for problem in of_one]:
        raise RecipeError(problems)


@app.command("schema")
def schema_command(as_json: Json = False) -> None:
    """Print the JSON schema of a recipe, for editors."""
    import json

    from lrft.recipe.json_schema import recipe_schema

    result(recipe_schema(), as_json, lambda schema: print(json.dumps(schema, indent=2)))


@app.command("diff")
def diff_command(a: Name, b: Name, as_json: Json = False) -> None:
    """Print the settings in which two recipes differ, defaults included.

    Example: lrft recipes diff smollm2-gsm8k-dora mine.yaml
    """
    from lrft.recipe.load import load_recipe
    from lrft.recipe.resolved import ABSENT, compare

    changes = compare(load_recipe(a).recipe, load_recipe(b).recipe)
    listed = [
        {"key": key, **{side: value for side, value in (("a", left), ("b", right)) if value is not ABSENT}}
        for key, left, right in changes
    ]
    result(listed, as_json, lambda _: _show_changes(changes))


def _show_good(found: list[tuple[str, list[Problem]]]) -> None:
    for recipe, problems in found:
        if not problems:
            print(f"{recipe}: ok")


def _show_changes(changes: list[tuple[str, Value, Value]]) -> None:
    for key, left, right in changes:
        print(f"{key}: {left} -> {right}")
