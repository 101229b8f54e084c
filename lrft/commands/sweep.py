"""`lrft sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Cluster, ClusterSet, Jobs, KeepCheckpoints, RecipeName, Runs
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_cells
from lrft.core.notes import say, silence

if TYPE_CHECKING:
    from lrft.lab.sweep.sweep import Sweep


def sweep_command(
    recipe: RecipeName,
    out: Runs,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=V1,V2...]", help="Values to combine; a key with one value holds for all."
        ),
    ] = None,
    arms: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Named lists of overrides, as `wide: [adapter.rank=64]`."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What orders them: eval_loss, loss, or TASK.SCORE of the recipe's eval.tasks.")
    ] = "eval_loss",
    jobs: Jobs = 1,
    keep_checkpoints: KeepCheckpoints = False,
    cluster: Cluster = None,
    cluster_set: ClusterSet = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe with every combination of some values, and order them by their score.

    Example: lrft sweep quickstart adapter.rank=4,8,16 optimizer.lr=1e-3,3e-3 --out sweep
    """
    from lrft.lab.runs.typed import command_line
    from lrft.lab.runs.where import place_runs
    from lrft.lab.sweep.report import write_report
    from lrft.lab.sweep.sweep import Kept, Settings, sweep

    silence(quiet)
    kept: Kept = "checkpoints" if keep_checkpoints else "adapter"
    executor = place_runs(cluster, cluster_set or (), out, jobs)
    settings = Settings(out, metric, jobs, kept, executor, trust_remote_code)
    record = sweep(recipe, overrides or [], settings, arms, command_line())
    say(f"report: {write_report(record, out)}")
    result(record, as_json, _show)


def _show(record: Sweep) -> None:
    from lrft.lab.sweep.report import cells

    show_cells(cells(record))
