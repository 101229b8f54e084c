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
            help="Tables by name or file, or `ls` to list them; by default all.", metavar="[NAME...|ls]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where NAME.md and NAME.json go.")] = Path("tables"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
) -> None:
    """Count the tables of papers: published, ours, difference, verdict. Exit code 6 when a tolerance is missed.

    Example: lrft reproduce dora
    """
    from rich import print as show
    from rich.table import Table

    if names == ["ls"]:
        from lrft.jobs.reproduce import listing

        table = Table("table", "tier", "rows", "last verdict")
        for name, tier, rows, verdict in listing(out):
            table.add_row(name, tier, str(rows), verdict)
        show(table)
        return
    from lrft.jobs.reproduce import reproduce

    records = reproduce(names or [], out)
    if as_json:
        print(json.dumps(records, indent=2))
