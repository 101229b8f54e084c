"""`lrft train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.commands.arguments import NewRun, Overrides
from lrft.commands.complete import recipe_names
from lrft.commands.counts import add_rows, parameter_rows, recomputed_rows, target_rows
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core import stop
from lrft.core.notes import silence
from lrft.registry.json import Json as Value

if TYPE_CHECKING:
    from rich.table import Table

    from lrft.api.planning.plan import Plan


def train_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Recipe file, or the name of a packaged one; with --resume also a run.",
            autocompletion=recipe_names,
        ),
    ],
    overrides: Overrides = None,
    out: NewRun = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run given, the one in --out, or the latest of this recipe."
        ),
    ] = False,
    more_steps: Annotated[
        int | None,
        typer.Option("--more-steps", min=1, help="With --resume: add so many steps to a finished run."),
    ] = None,
    more_rate: Annotated[
        str | None,
        typer.Option(
            "--more-rate",
            help="The rate in them: `stretched` (the default), `again` or `held`.",
            metavar="HOW",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; load no weights.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record steps 4 to 6 and print where their time went.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a recipe.

    Example: lrft train quickstart train.max_steps=20 --out runs/try
    """
    from lrft.api.training.recorded import extension, to_train

    silence(quiet)
    added = extension(more_steps, more_rate)
    loaded = to_train(recipe, overrides or [], resume, added)
    if dry_run:
        from lrft.api.planning.plan import plan

        with stop.at_once():
            planned = plan(loaded, trust_remote_code)
        result(planned, as_json, _show_plan)
        return
    from lrft.api.training.train import train
    from lrft.registry.errors import Interrupted

    try:
        found = train(loaded, out, resume, trust_remote_code, profile=profile, added=added)
    except Interrupted as stopped:
        if stopped.record is not None:  # the tasks that were scored before somebody asked to stop
            result(stopped.record, as_json, _show_scores)
        raise
    result(found, as_json, _show)


def _show(found: Mapping[str, Value]) -> None:
    loss = "no loss recorded" if found["loss"] is None else f"loss {found['loss']:.4f}"
    print(f"{found['name']}: step {found['step']}, {loss}")
    _show_scores(found)
    if isinstance(profiled := found.get("profile"), dict):
        from lrft.training.profile_parts import table

        print(f"\n{table(**profiled)}", end="")


def _show_scores(found: Any) -> None:
    if isinstance(scores := found.get("scores"), dict):
        for task, metrics in scores.items():
            assert isinstance(metrics, dict)
            shown = [f"{name} {value:.4g}" for name, value in metrics.items() if value is not None]
            print(f"{task}: {', '.join(shown)}")


def _add_tasks(table: Table, tasks: Mapping[str, int]) -> None:
    begin = 1
    for task, end in tasks.items():
        table.add_row(f"task {task}", f"steps {begin} to {end}")
        begin = end + 1


def _show_plan(plan: Plan) -> None:
    """The plan as tables on standard output."""
    from rich.table import Table

    from lrft.build.text import fact_lines

    table = Table("plan", plan["recipe"])
    for label, value in fact_lines(plan["data"]):
        table.add_row(label, value)
    table.add_row("steps", str(plan["steps"]))
    _add_tasks(table, plan.get("tasks", {}))
    add_rows(table, target_rows(plan))
    if plan["matrices"]["sentence"]:
        table.add_row("not reached", plan["matrices"]["sentence"])
    add_rows(table, parameter_rows(plan))
    if plan["ranks_undecided"]:
        table.add_row("", "before a planner that looks at weights or data has had its say")
    add_rows(table, recomputed_rows(plan))
    if plan["recomputed_why"]:
        table.add_row("", plan["recomputed_why"])
    for label, size in plan["memory_bytes"].items():
        table.add_row(f"memory: {label.replace('_', ' ')}", f"{size / 2**20:,.1f} MiB")
    for name, peak in (plan["peaks"] or {}).items():
        table.add_row(f"peak: {name}", f"{peak['total'] / 2**20:,.1f} MiB")
    if plan["memory"]:
        table.add_row("", plan["memory"])
    show_table(table)
