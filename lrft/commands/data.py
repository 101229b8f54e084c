"""`lrft data`: look at what is learnt, and judge the data without training."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, Quiet, result
from lrft.core.notes import is_terminal, silence

if TYPE_CHECKING:
    from lrft.data.encoded import Encoded
    from lrft.data.prepare import Prepared

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
    silence(quiet)
    prepared, tokenizer = _prepared(recipe, overrides, trust_remote_code, rows)
    shown = [_row(prepared.rows.where(i), row, tokenizer) for i, row in enumerate(prepared.encoded)]
    result(shown, as_json, lambda _: _show(prepared, tokenizer))


@app.command("check")
def check_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the gate that precedes training: `lrft data check quickstart`. Exits with 3 when it stays shut."""
    from lrft.assemble.text import check_text, read_text
    from lrft.jobs.say import progress
    from lrft.recipe.load import load_recipe

    silence(quiet)
    loaded = load_recipe(recipe, overrides or []).recipe
    with progress() as show:
        text = read_text(loaded, trust_remote_code=trust_remote_code, progress=show)
    lines = [f"{label}: {value}" for label, value in text.facts()]
    result(text.record(), as_json, lambda _: print("\n".join(lines)))
    check_text(text, loaded)


def _row(where: str, encoded: Encoded, tokenizer: Any) -> dict[str, Any]:
    """A row as plain values; the text of a pair says of which answer it is."""
    from lrft.data.show import spans

    answers = ({"answer": "chosen"}, {"answer": "rejected"}) if encoded.parts else ({},)
    return {
        "where": where,
        "tokens": encoded.length,
        "learnt": encoded.targets,
        "truncated": encoded.truncated,
        "dropped": encoded.dropped,
        "segments": [
            {**answer, "text": text, "learnt": learnt}
            for answer, document in zip(answers, encoded.documents(), strict=True)
            for text, learnt in spans(document, tokenizer)
        ],
    }


def _show(prepared: Prepared, tokenizer: Any) -> None:
    from rich.console import Console

    from lrft.data.show import masked_text

    coloured = is_terminal(sys.stdout)
    console = Console(highlight=False, force_terminal=coloured)
    for index, encoded in enumerate(prepared.encoded):
        state = "dropped" if encoded.dropped else f"{encoded.length} tokens, {encoded.targets} learnt"
        console.print(f"{prepared.rows.where(index)}: {state}", style="bold", markup=False, soft_wrap=True)
        console.print(masked_text(encoded, tokenizer, coloured), soft_wrap=True)


def _prepared(
    name: str, overrides: list[str] | None, trust_remote_code: bool, limit: int
) -> tuple[Prepared, Any]:
    """The first `limit` of the recipe's training rows through its tokenizer and format, and the tokenizer."""
    from lrft.assemble.text import read_rendered
    from lrft.jobs.say import progress
    from lrft.recipe.load import load_recipe

    recipe = load_recipe(name, overrides or []).recipe
    source = recipe.data.train
    source = source.model_copy(update={"limit": min(limit, source.limit or limit)})
    with progress() as show:
        return read_rendered(recipe, source, trust_remote_code, show)
