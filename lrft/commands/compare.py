"""`lrft compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Cluster, ClusterSet, Jobs, Runs
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_cells, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.lab.compare.bases import Bases
    from lrft.lab.compare.record import Comparison


def compare_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Recipes, then overrides that hold for all."),
    ],
    out: Runs,
    match: Annotated[
        str,
        typer.Option(help="Make ranks equal by `params` or `memory`, or `steps` alone.", metavar="BUDGET"),
    ] = "params",
    lr_grid: Annotated[str, typer.Option(help="Rates that every recipe is tried at.")] = "1e-4,3e-4,1e-3",
    seeds: Annotated[str, typer.Option(help="How many, or which: 3 is 0,1,2; 10-14; 5,7.")] = "3",
    jobs: Jobs = 1,
    lr_search: Annotated[
        int | None,
        typer.Option(
            help="Instead of every rate of the grid, N that Optuna proposes between its ends, 4 or more.",
            metavar="N",
            min=1,
        ),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(help="Base model to score as it is, untrained, on one recipe's tasks; two or more."),
    ] = None,
    cluster: Cluster = None,
    cluster_set: ClusterSet = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare recipes fairly: equal budgets, a tuned rate each, the same seeds.

    Example: lrft compare a.yaml b.yaml train.max_steps=100 --out compared
    """
    from lrft.lab.compare.bases import compare_bases
    from lrft.lab.compare.command import compare_recipes
    from lrft.lab.compare.settings import parse_settings
    from lrft.registry.errors import UsageError

    silence(quiet)
    if base:
        if lr_search or cluster or cluster_set:
            raise UsageError("--base: nothing is trained, so leave out --lr-search and --cluster")
        result(compare_bases(arguments, base, out, trust_remote_code), as_json, _show_bases)
        return
    settings = parse_settings(
        out,
        by=match,
        rates=lr_grid,
        seeds=seeds,
        jobs=jobs,
        trials=lr_search,
        cluster=cluster,
        cluster_settings=cluster_set or (),
        trust_remote_code=trust_remote_code,
    )
    result(compare_recipes(arguments, settings), as_json, _show)


def _show(record: Comparison) -> None:
    from lrft.lab.compare.report import cells

    show_cells(cells(record))


def _show_bases(found: Bases) -> None:
    from lrft.evaluation.report import plain_table

    show_table(plain_table(found["scores"]))
    print()
    for score, best in found["best"].items():
        task, _, metric = score.rpartition(".")
        same = [base for base, tasks in found["scores"].items() if tasks[task][metric] == best["value"]]
        print(f"{score}: {' and '.join(same)}, {best['value']:.4f} ({best['better']} is better)")
        for other, pair in best["against"].items():
            alone = (
                f"{pair['best_alone']} rows right that {other} has wrong, {pair['other_alone']} the other way"
            )
            print(f"  {alone}, p {pair['mcnemar_p']:.2g}")
    for line in found["not_ranked"]:
        print(f"not ranked: {line}")
