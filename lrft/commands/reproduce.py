"""`lrft reproduce`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Cluster, ClusterSet
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.lab.tables.record import Sizes

LISTED = ("table", "tier", "rows", "cost", "last verdict")
GIB = 2**30


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
    jobs: Annotated[
        int, typer.Option(help="Trainings at a time; with --cluster, queued ones count.", min=1)
    ] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for tables that train.")] = None,
    cluster: Cluster = None,
    cluster_set: ClusterSet = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Count rows anew that an earlier call has counted.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, what trains and how much memory it takes.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The tables of papers: published, ours, difference, verdict. Exit code 6 when a tolerance is missed.

    Example: lrft reproduce dora
    """
    silence(quiet)
    chosen = None if seeds is None else _seeds(seeds)
    if names == ["ls"]:
        from lrft.lab.tables.listing import listing

        rows: list[dict[str, str | int]] = [dict(zip(LISTED, row, strict=True)) for row in listing(out)]
        result(rows, as_json, _show)
    elif dry_run:
        from lrft.lab.tables.sizes import sizes

        found = sizes(names or [], tier, chosen, trust_remote_code)
        result(list(found) if as_json else found, as_json, _show_sizes)
    else:
        from lrft.lab.tables.reproduce import Options, reproduce

        options = Options(chosen, jobs, device, cluster, cluster_set or (), fresh, trust_remote_code)
        result(reproduce(names or [], out, tier, options), as_json, lambda _: None)  # it is in OUT


def _seeds(text: str) -> list[int]:
    from lrft.lab.compare.settings import parse_seeds

    return parse_seeds(text)


def _show(listed: list[dict[str, str | int]]) -> None:
    from rich.table import Table

    table = Table(*LISTED)
    for row in listed:
        table.add_row(*map(str, row.values()))
    show_table(table)


def _show_sizes(found: Iterable[Sizes]) -> None:
    """The sizes as tables on standard output, one as soon as it is known."""
    from rich.table import Table

    for one in found:
        print(f"{one['name']} ({one['tier']} tier): {one['runs']}; cost: {one['cost']}")
        table = Table("row", "trainable", one["memory"])
        for row in one["rows"]:
            counted = row.get("state", "") if row["trainable"] is None else f"{row['trainable']:,}"
            memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / GIB:,.2f} GiB"
            table.add_row(row["label"], counted, memory)
        if one["rows"]:
            show_table(table)
