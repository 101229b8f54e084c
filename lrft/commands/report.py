"""`lrft report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.output import Json, Quiet, result
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.lab.report.report import Report


def report_command(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; by default the latest run under runs/.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="Folder for the curves as PNG files too; needs matplotlib.")
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="First run lrft inspect where the newest checkpoint lacks it.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about one run or several: curves, weights, scores, samples, recipes, hardware.

    Example: lrft report runs/a runs/b --out report.html
    """
    from lrft.evaluation.progress import EvaluationBar
    from lrft.lab.report.report import report

    silence(quiet)
    with EvaluationBar() as show:
        found = report(runs or (), out, png, inspect, show)
    result(found, as_json, _show)


def _show(found: Report) -> None:
    for run in found["runs"]:
        print(f"{run['run']}: {run['state']}")
    for picture in found["pictures"]:
        print(picture)
    print(f"{found['file']} ({found['bytes'] / 1000:,.0f} kB)")
