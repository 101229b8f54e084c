"""`lrft eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from lrft.commands.arguments import Checkpoint, Run
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence


def eval_command(
    run: Run = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task to run instead of the recipe's; may be repeated.")
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness instead, by name or .yaml file, with commas between.",
            metavar="TASKS",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many rows.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the bare base model beside it.")
    ] = False,
    checkpoint: Checkpoint = None,
    posterior: Annotated[
        bool,
        typer.Option(
            "--posterior", help="Score multiple choice with what lrft posterior measured, and without."
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a run.

    Example: lrft eval --baseline --task gsm8k --limit 200
    """
    from lrft.api.asking.evaluate import evaluate
    from lrft.api.asking.posterior import score_posterior
    from lrft.evaluation.progress import EvaluationBar
    from lrft.evaluation.report import NotReported, plain_table, table
    from lrft.registry.errors import Interrupted, UsageError

    silence(quiet)
    names = [name.strip() for name in (harness or "").split(",") if name.strip()]
    if harness is not None and not names:
        raise UsageError("--harness: name a task of lm-evaluation-harness, or several with commas between")
    if posterior and (task or names or baseline):
        raise UsageError(
            "--posterior scores multiple choice alone; leave out --task, --harness and --baseline"
        )
    failure: NotReported | None = None
    try:
        with EvaluationBar() as show:
            if posterior:
                found = score_posterior(run, limit, show, checkpoint, trust_remote_code)
            else:
                found = evaluate(run, task or [], limit, baseline, show, checkpoint, names, trust_remote_code)
    except NotReported as error:  # no score is lost for the want of a file
        found, failure = {label: dict(tasks) for label, tasks in error.results.items()}, error
    except Interrupted as stopped:
        if stopped.record is not None:  # what was scored before somebody asked to stop
            result(stopped.record, as_json, lambda scores: show_table(plain_table(scores)))
        raise
    scores = {label: {task: r.metrics for task, r in tasks.items()} for label, tasks in found.items()}
    result(scores, as_json, lambda _: show_table(table(found)))
    if failure is not None:
        raise failure
