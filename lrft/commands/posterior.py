"""`lrft posterior`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Checkpoint, Run, parse_numbers
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.asking.posterior import Fitted


def posterior_command(
    run: Run = None,
    layers: Annotated[
        str, typer.Option(help="`all` sites, or those of the `last` layer that has any.", metavar="WHICH")
    ] = "all",
    rank: Annotated[
        int, typer.Option(min=1, help="Eigenpairs that are kept of a large side.", metavar="N")
    ] = 10,
    above: Annotated[
        int, typer.Option(min=1, help="Numbers from which on a side is large.", metavar="N")
    ] = 512,
    temperature: Annotated[
        str,
        typer.Option(
            help="Of the likelihood; of several, as 0.7,1,1.4, the one of largest evidence.", metavar="T"
        ),
    ] = "1",
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first so many training rows.")] = None,
    checkpoint: Checkpoint = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how sure a run's adapter may be (Laplace-LoRA), for lrft eval --posterior.

    Example: lrft posterior runs/obqa --layers all --temperature 0.7,1,1.4
    """
    from lrft.api.asking.posterior import fit_posterior
    from lrft.evaluation.progress import EvaluationBar

    silence(quiet)
    temperatures = parse_numbers("--temperature", temperature, "write positive numbers, with commas between")
    with EvaluationBar() as show:
        found = fit_posterior(
            run,
            layers=layers,
            rank=rank,
            above=above,
            temperatures=temperatures,
            limit=limit,
            progress=show,
            checkpoint=checkpoint,
            trust_remote_code=trust_remote_code,
        )
    result(found, as_json, _show)


def _show(found: Fitted) -> None:
    from rich.table import Table

    table = Table("temperature", "prior precision", "log evidence", "log likelihood")
    for column in table.columns:
        column.justify = "right"
    for one in found["tried"]:
        table.add_row(
            f"{one['temperature']:g}",
            f"{one['prior_precision']:.4g}",
            f"{one['log_evidence']:.2f}",
            f"{one['log_likelihood']:.2f}",
        )
    show_table(table)
    where = f"{found['sites']} sites, {found['parameters']:,} parameters, {found['rows']:,} rows"
    print(f"\n{where}; temperature {found['temperature']:g}, prior precision {found['prior_precision']:.4g}")
    print(f"written to {found['folder']}; lrft eval --posterior scores with it")
