"""`lrft data`: look at what is learnt, and judge the data without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import DrawnSeed, Overrides, RecipeName
from lrft.commands.augment import augment_command
from lrft.commands.complete import methods_of
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.commands.rank import rank_command
from lrft.core import stop
from lrft.core.notes import is_terminal, say, silence
from lrft.registry.errors import UsageError

if TYPE_CHECKING:
    from lrft.api.data.select import Selected
    from lrft.api.data.show import ShownRow, SplitName
    from lrft.data.layout import Packed

app = typer.Typer(
    no_args_is_help=True,
    help="See the training data as the model will, check it, choose from it, and write more.",
)
app.command("augment")(augment_command)
app.command("rank")(rank_command)

SHOWN = 10  # chosen rows in the table
RowCount = Annotated[int, typer.Option("--rows", min=1, help="How many rows, from the first.")]
Places = Annotated[
    list[str] | None,
    typer.Option("--at", help="Rows at this line, or FILE:LINE; may be given several times."),
]
Split = Annotated[str, typer.Option("--split", help="train or eval: rows of data.train, or of data.eval.")]
Ids = Annotated[bool, typer.Option("--ids", help="Print token ids below the text.")]
Processes = Annotated[
    int,
    typer.Option(
        min=1, max=1024, metavar="N", help="Processes that make tokens of rows; the result is the same."
    ),
]
AsPacked = Annotated[bool, typer.Option("--packed", help="Print which document lies where in packed rows.")]


@app.command("show")
def show_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: RowCount = 3,
    at: Places = None,
    split: Split = "train",
    ids: Ids = False,
    packed: AsPacked = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print rows as text, what is learnt highlighted: `lrft data show quickstart --rows 2`."""
    from lrft.api.data.show import show_packed, show_rows

    silence(quiet)
    if packed:
        if at or ids or split != "train":
            raise UsageError("--packed: shows where training rows lie; leave out --at, --ids and --split")
        with stop.at_once():
            laid_out = show_packed(recipe, rows, trust_remote_code, overrides=overrides or [])
        result(laid_out, as_json, _show_packed)
        return
    if split not in ("train", "eval"):
        raise UsageError(f"--split {split}: there are train and eval")
    named: SplitName = "train" if split == "train" else "eval"
    with stop.at_once():
        shown = show_rows(
            recipe, rows, trust_remote_code, overrides=overrides or [], split=named, places=at or []
        )
    result([row.record(ids) for row in shown], as_json, lambda _: _show(shown, ids))


@app.command("check")
def check_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Processes = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the gate that precedes training: `lrft data check quickstart`. Exits with 3 when it stays shut."""
    from lrft.api.data.check import check_data
    from lrft.build.text import check_text
    from lrft.recipe.load import load_recipe

    silence(quiet)
    loaded = load_recipe(recipe, overrides or [])
    with stop.at_once():
        found = check_data(loaded, trust_remote_code, processes=processes)
    lines = [f"{label}: {value}" for label, value in found.facts()]
    result(found.record(), as_json, lambda _: print("\n".join(lines)))
    check_text(found.text, loaded.recipe)


@app.command("select")
def select_command(
    recipe: RecipeName,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How rows are chosen, or {method: NAME, ...} with settings: `lrft methods ls data_selection`.",
            autocompletion=methods_of("data_selection"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl file of the chosen rows, best first.")],
    overrides: Overrides = None,
    budget: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many rows; left out where the method says so.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows of the task that the chosen ones are to serve.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Run or checkpoint that measures the rows; for gradients several, averaged."),
    ] = None,
    seed: DrawnSeed = 0,
    processes: Processes = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose training rows: `lrft data select quickstart --method length --budget 500 --out chosen.jsonl`."""
    from lrft.api.data.select import select_rows

    silence(quiet)
    found = select_rows(
        recipe,
        method,
        out,
        budget,
        target,
        run or (),
        seed,
        overrides=overrides or [],
        trust_remote_code=trust_remote_code,
        processes=processes,
    )
    for note in found["notes"]:
        say(note)
    result(found, as_json, _show_selected)


def _show_selected(found: Selected) -> None:
    from rich.table import Table

    chosen = found["chosen"]
    shown = Table("place", "score", "row", "reason")
    for place, one in enumerate(chosen[:SHOWN], 1):
        shown.add_row(str(place), f"{one['score']:.4g}", one["row"], one["reason"])
    show_table(shown)
    more = f", the first {SHOWN} above" if len(chosen) > SHOWN else ""
    left = f"; {found['left_out']:,} rows have nothing to learn" if found["left_out"] else ""
    print(f"{found['out']}: {len(chosen):,} of {found['pool']:,} rows by {found['method']}{more}{left}")


def _show(rows: list[ShownRow], ids: bool) -> None:
    from rich.console import Console

    coloured = is_terminal(sys.stdout)
    console = Console(highlight=False, force_terminal=coloured)
    for row in rows:
        console.print(row.heading(), style="bold", markup=False, soft_wrap=True)
        console.print(row.text(coloured), soft_wrap=True)
        if ids:
            console.print(row.ids(coloured), soft_wrap=True)


def _show_packed(packed: Packed) -> None:
    capacity = packed["capacity"]
    print(
        f"{packed['examples']:,} rows in {packed['rows']:,} packed rows of {capacity} tokens, {packed['full']:.1%} full"
    )
    for row in packed["first"]:
        place = f"step {row['step']}, micro-batch {row['micro_batch']}, row {row['row']}"
        print(f"{place}: {row['tokens']} of {capacity} tokens")
        for held in row["documents"]:
            answer = f", {held['answer']}" if "answer" in held else ""
            print(f"  {held['start']:>5}-{held['end']:<5} {held['where']}{answer}, {held['learnt']} learnt")
