"""`lrft data rank`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Overrides, RecipeName, RowsSeed
from lrft.commands.complete import methods_of
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.data.rank import Ranked


def rank_command(
    recipe: RecipeName,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What estimates the transfer: `lrft methods ls transfer`.",
            autocompletion=methods_of("transfer"),
        ),
    ],
    source: Annotated[
        list[Path],
        typer.Option(
            help="Run of a source task, or, where texts alone are compared, its recipe; may be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .json file of the order, best first.")],
    overrides: Overrides = None,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows of the target and of each source.")
    ] = 1000,
    seed: RowsSeed = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Order tasks to train on first: `lrft data rank mine.yaml --method logme --source runs/a --out order.json`."""
    from lrft.api.data.rank import rank_sources

    silence(quiet)
    found = rank_sources(
        recipe,
        source,
        method,
        out,
        rows,
        seed,
        overrides=overrides or [],
        trust_remote_code=trust_remote_code,
    )
    result(found, as_json, _show)


def _show(found: Ranked) -> None:
    from rich.table import Table

    shown = Table("source", "score", "95 %", "behind the best", "95 %")
    for number, one in enumerate(found["sources"]):
        interval = f"{one['low']:.4g} to {one['high']:.4g}"
        apart = (
            ("", "")
            if number == 0
            else (f"{one['behind']:.4g}", _interval(one["behind_low"], one["behind_high"]))
        )
        shown.add_row(one["source"], f"{one['score']:.4g}", interval, *apart)
    show_table(shown)
    classes = "" if found["classes"] is None else f" in {len(found['classes'])} classes"
    print(f"{found['out']}: {found['method']} by {found['target_rows']:,} rows of the target{classes}")


def _interval(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"
