"""`lrft merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lrft.commands.output import Json, Quiet, result
from lrft.core.notes import silence
from lrft.core.plain import plain


def merge_command(
    out: Annotated[Path, typer.Option(help="Folder for the merged model; must be empty or new.")],
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the latest under runs/.")] = None,
    onto: Annotated[
        str | None,
        typer.Option(help="`dequantized`, the base seen in training, or `original`.", metavar="BASE"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Merge only the leading ranks, of adapters whose ranks are nested.", min=1, metavar="K"
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge a run's adapter into dense weights, and measure how faithful they are.

    Example: lrft merge --out model/
    """
    from lrft.core.errors import UsageError
    from lrft.jobs.merge import merge_run
    from lrft.train.folder import find

    if onto not in (None, "dequantized", "original"):
        raise UsageError(f"--onto {onto}: choose dequantized or original")
    silence(quiet)
    result(merge_run(find(run), out, onto, rank), as_json, _show)


def _show(record: dict[str, Any]) -> None:
    print(json.dumps(plain(record), indent=2))
