"""`lrft methods`: what can be chosen in a recipe, read from the methods' docstrings."""

from __future__ import annotations

from typing import Annotated

import typer

from lrft.commands.output import Json, result

app = typer.Typer(no_args_is_help=True, help="List and describe the methods a recipe can choose.")


def _axes(incomplete: str) -> list[str]:
    from lrft.recipe.catalog import CATALOG

    return [axis for axis in CATALOG if axis.startswith(incomplete)]


def _names(incomplete: str) -> list[str]:
    from lrft.recipe.catalog import methods

    return sorted({declared.name for _, declared in methods() if declared.name.startswith(incomplete)})


@app.command("ls")
def ls_command(
    axis: Annotated[str | None, typer.Argument(help="Recipe key of an axis.", autocompletion=_axes)] = None,
    as_json: Json = False,
) -> None:
    """List methods by the recipe key they go under.

    Example: lrft methods ls adapter
    """
    from lrft.recipe import catalog

    listed = [
        {"axis": key, "name": declared.name, "summary": declared.summary}
        for key, declared in catalog.methods(axis)
    ]
    result(listed, as_json, lambda _: print(catalog.table(axis)))


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Method name.", autocompletion=_names)], as_json: Json = False
) -> None:
    """Print a method's equation, settings, and what it provides and requires."""
    from lrft.recipe import catalog

    result(catalog.record(name), as_json, lambda _: print(catalog.describe(name)))
