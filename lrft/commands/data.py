"""`lrft data`: look at what is learnt, and judge the data without training."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, Quiet, result
from lrft.core.notes import is_terminal, silence

if TYPE_CHECKING:
    from lrft.api.data import ShownRow

app = typer.Typer(no_args_is_help=True, help="See the training data as the model will, and check it.")

RecipeName = Annotated[
    str, typer.Argument(help="Recipe file, or the name of a packaged one.", autocompletion=recipe_names)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes.")]
RowCount = Annotated[int, typer.Option("--rows", min=1, help="How many rows, from the first.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]


@app.command("show")
def show_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: RowCount = 3,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print rows as text, what is learnt highlighted: `lrft data show quickstart --rows 2`."""
    from lrft.api.data import show_rows

    silence(quiet)
    shown = show_rows(recipe, rows, trust_remote_code, overrides=overrides or [])
    result([row.record() for row in shown], as_json, lambda _: _show(shown))


@app.command("check")
def check_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the gate that precedes training: `lrft data check quickstart`. Exits with 3 when it stays shut."""
    from lrft.api.data import check_data
    from lrft.build.text import check_text
    from lrft.recipe.load import load_recipe

    silence(quiet)
    loaded = load_recipe(recipe, overrides or [])
    text = check_data(loaded, trust_remote_code)
    lines = [f"{label}: {value}" for label, value in text.facts()]
    result(text.record(), as_json, lambda _: print("\n".join(lines)))
    check_text(text, loaded.recipe)


def _show(rows: list[ShownRow]) -> None:
    from rich.console import Console

    coloured = is_terminal(sys.stdout)
    console = Console(highlight=False, force_terminal=coloured)
    for row in rows:
        console.print(row.heading(), style="bold", markup=False, soft_wrap=True)
        console.print(row.text(coloured), soft_wrap=True)
