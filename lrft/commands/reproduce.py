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
    tier: Annotated[
        str,
        typer.Option(help="`exact` counts without weights; `scaled` trains small replays.", metavar="TIER"),
    ] = "exact",
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of a replay; by default as many as its table states.", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trainings of a replay at a time.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for replays.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
) -> None:
    """The tables of papers: published, ours, difference, verdict. Exit code 6 when a tolerance is missed.

    Example: lrft reproduce dora
    """
    from lrft.core.errors import UsageError

    if tier not in ("exact", "scaled"):
        raise UsageError(f"--tier {tier}: choose exact or scaled")
    from rich import print as show
    from rich.table import Table

    if names == ["ls"]:
        from lrft.jobs.reproduce import listing

        table = Table("table", "tier", "rows", "last verdict")
        for name, tier, rows, verdict in listing(out):
            table.add_row(name, tier, str(rows), verdict)
        show(table)
        return
    from lrft.jobs.reproduce import replay, reproduce

    if tier == "exact":
        records = reproduce(names or [], out)
    else:
        records = replay(names or [], out, seeds=seeds, jobs=jobs, device=device)
    if as_json:
        print(json.dumps(records, indent=2))
