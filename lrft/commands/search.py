"""`lrft search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Cluster, ClusterSet, Jobs, KeepCheckpoints, RecipeName, Runs
from lrft.commands.complete import methods_of
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_cells
from lrft.core.notes import say, silence

if TYPE_CHECKING:
    from lrft.lab.search.record import Found


def search_command(
    recipe: RecipeName,
    space: Annotated[
        Path, typer.Option(metavar="FILE", help="What arms differ in, as `adapter.rank: [4, 8, 16]`.")
    ],
    budget: Annotated[int, typer.Option(min=1, help="Arms in all; a larger one goes on.")],
    out: Runs,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE...]", help="Overrides that hold for every arm.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How arms are proposed, or {method: NAME, ...} with settings: `lrft methods ls search`.",
            autocompletion=methods_of("search"),
        ),
    ] = "random",
    metric: Annotated[
        str, typer.Option(help="What is sought: eval_loss, loss, or TASK.SCORE of the recipe's eval.tasks.")
    ] = "eval_loss",
    against: Annotated[
        str, typer.Option(metavar="COST", help="What is traded for it: trainable, bytes or step_seconds.")
    ] = "trainable",
    jobs: Jobs = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the search; that of the arms is train.seed.")] = 0,
    keep_checkpoints: KeepCheckpoints = False,
    cluster: Cluster = None,
    cluster_set: ClusterSet = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for the settings of a recipe that score best, and for those worth their cost.

    Example: lrft search quickstart --space space.yaml --budget 20 --method evolution --out searched
    """
    from lrft.lab.runs.typed import command_line
    from lrft.lab.search.report import sentences, write_report
    from lrft.lab.search.search import search
    from lrft.lab.search.settings import parse_settings

    silence(quiet)
    settings = parse_settings(
        out,
        budget=budget,
        method=method,
        metric=metric,
        against=against,
        seed=seed,
        jobs=jobs,
        keep_checkpoints=keep_checkpoints,
        cluster=cluster,
        cluster_settings=cluster_set or (),
        trust_remote_code=trust_remote_code,
    )
    record = search(recipe, overrides or [], space, settings, command_line())
    for sentence in sentences(record):
        say(sentence)
    say(f"report: {write_report(record, out)}")
    result(record, as_json, _show)


def _show(record: Found) -> None:
    from lrft.lab.search.report import cells

    show_cells(cells(record))
