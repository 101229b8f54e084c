"""`lrft federate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import NewRun, Overrides
from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core import stop
from lrft.core.notes import silence
from lrft.registry.json import Json as Value

if TYPE_CHECKING:
    from lrft.api.training.federate import Shared


def federate_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Recipe file with a federate section, or the name of a packaged one; with --resume also a run.",
            autocompletion=recipe_names,
        ),
    ],
    overrides: Overrides = None,
    out: NewRun = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last round that is saved.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which rows every client would hold; load no weights.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a recipe by clients that hold the rows apart and are averaged, one after the other on this machine.

    Example: lrft federate smoke/federated/fedavg federate.clients=4 --out runs/clients
    """
    silence(quiet)
    if dry_run:
        from lrft.api.training.federate import share

        with stop.at_once():
            shared = share(recipe, trust_remote_code, overrides=overrides or [])
        result(shared, as_json, _show_shares)
        return
    from lrft.api.training.federate import federate

    result(federate(recipe, out, resume, trust_remote_code, overrides=overrides or []), as_json, _show)


def _show(found: Mapping[str, Value]) -> None:
    federation = found["federation"]
    assert isinstance(federation, dict), "a federation leaves its record"
    print(
        f"{found['name']}: round {found['step']}, loss {found['loss']:.4f}; "
        f"{federation['bytes_up']:,} bytes up, {federation['bytes_down']:,} down, "
        f"{federation['bytes_start']:,} to each client before the first round"
    )


def _show_shares(shared: Shared) -> None:
    from rich.table import Table

    labels = sorted({label for held in shared["clients"] for label in held["labels"]})
    shown = labels if len(labels) <= 12 else []
    table = Table("client", "rows", *shown)
    for held in shared["clients"]:
        counts = [str(held["labels"].get(label, 0)) for label in shown]
        table.add_row(str(held["client"]), str(held["rows"]), *counts)
    show_table(table)
