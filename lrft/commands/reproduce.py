"""`lrft reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def reproduce_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tables by name or file, or `ls` to list them; by default all of the tier.",
            metavar="[NAME...|ls]",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where NAME.md and NAME.json go; what is finished is kept.")
    ] = Path("tables"),
    tier: Annotated[
        str | None,
        typer.Option(
            help="`exact` counts without weights (the default), `scaled` trains small replays, `full` the real models.",
            metavar="TIER",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Of tables that train: how many (3), a range (10-14) or a list (5,7); by default as each states.",
            metavar="SEEDS",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trainings at a time.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for tables that train.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Count rows anew that an earlier call has counted.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, what trains and how much memory it takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
) -> None:
    """The tables of papers: published, ours, difference, verdict. Exit code 6 when a tolerance is missed.

    Example: lrft reproduce dora
    """
    if names == ["ls"]:
        _list(out, as_json)
        return
    if dry_run:
        from lrft.jobs.sizes import show_sizes, sizes

        found = sizes(names or [], tier, None if seeds is None else _seeds(seeds))
        print(json.dumps(list(found), indent=2)) if as_json else show_sizes(found)
        return
    from lrft.jobs.reproduce import Options, reproduce

    options = Options(None if seeds is None else _seeds(seeds), jobs, device, fresh)
    records = reproduce(names or [], out, tier, options)
    if as_json:
        print(json.dumps(records, indent=2))


def _seeds(text: str) -> list[int]:
    from lrft.compare.plan import parse_seeds

    return parse_seeds(text)


def _list(out: Path, as_json: bool) -> None:
    from rich import print as show
    from rich.table import Table

    from lrft.tables.listing import listing

    heads = ("table", "tier", "rows", "cost", "last verdict")
    found = listing(out)
    if as_json:
        print(json.dumps([dict(zip(heads, row, strict=True)) for row in found], indent=2))
        return
    table = Table(*heads)
    for row in found:
        table.add_row(*map(str, row))
    show(table)
