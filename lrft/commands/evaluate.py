"""`lrft eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def eval_command(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the latest under runs/.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task to run instead of the recipe's; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many rows.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Score the bare base model beside it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a run.

    Example: lrft eval --baseline --task gsm8k --limit 200
    """
    from lrft.evaluate.report import plain, table
    from lrft.jobs.evaluate import evaluate_run
    from lrft.jobs.say import progress
    from lrft.train.folder import find

    with progress() as show:
        results = evaluate_run(find(run), task or [], limit, baseline, show)
    if as_json:
        scores = {label: {task: r.metrics for task, r in tasks.items()} for label, tasks in results.items()}
        print(json.dumps(plain(scores), indent=2, allow_nan=False))
    else:
        from rich import print as show_table

        show_table(table(results))
