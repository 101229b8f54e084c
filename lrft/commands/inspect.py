"""`lrft inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.lab.spectra.record import Inspection


def inspect_command(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder, or one that PEFT wrote; by default the latest run under runs/."),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Leading directions that angles and intruders look at.", metavar="N")
    ] = 10,
    below: Annotated[
        float, typer.Option(min=0, max=1, help="Largest cosine similarity of an intruder.", metavar="X")
    ] = 0.5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out angles and intruders, which decompose every weight.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Base model of a PEFT folder, where it names none.", metavar="MODEL")
    ] = None,
    sites: Annotated[bool, typer.Option("--sites", help="Show every site, not means of modules.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what training did to the weights: spectra, ranks, angles and intruder dimensions of every change.

    Example: lrft inspect runs/quickstart --top 10 --below 0.5
    """
    from lrft.evaluation.progress import EvaluationBar
    from lrft.lab.spectra.inspect import inspect
    from lrft.lab.spectra.measure import Look

    silence(quiet)
    with EvaluationBar() as show:
        found = inspect(run, Look(top, below, quick), base, show, trust_remote_code)
    result(found, as_json, lambda inspection: _show(inspection, sites))


def _show(found: Inspection, sites: bool) -> None:
    from lrft.lab.spectra.table import headline, of_layers, of_modules, of_sites

    print(headline(found))
    print()
    show_table(of_sites(found) if sites else of_modules(found))
    layers = None if sites else of_layers(found)
    if layers is not None:
        print("\n|dW| / |W| of every layer")
        show_table(layers)
