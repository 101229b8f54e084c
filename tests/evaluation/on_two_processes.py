"""In every process of a launch: what each scores of runs and what it meets, as JSON in OUT-RANK.json: OUT RUN ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lrft.api.asking.evaluate import evaluate
from lrft.api.opening.open_run import open_run
from lrft.build.scoring import subject
from lrft.core.team import Team
from lrft.data.eval_batches import eval_batches
from lrft.evaluation.divide import divided
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.loss import row_losses
from lrft.evaluation.subject import Watch
from lrft.registry.errors import LrftError, NumericalError
from lrft.training.folder import RunFolder

PROMPTS = [[5 + i] * (3 + i % 4) for i in range(7)]
CONTINUATIONS = [[9 + i] * (1 + i % 3) for i in range(7)]


def scores(run: Path) -> dict[str, Any]:
    """Everything that is divided: tasks, log-probabilities, rows."""
    tasks = evaluate(run, ["loss", "exact_match"], baseline=True)
    recipe, text, adaptation = open_run(RunFolder(run))
    team = adaptation.team
    target = subject(recipe, text, adaptation.model, team=team)
    batches = eval_batches(text.held_out_encoded(None), 150, text.pad_id)
    return {
        "tasks": {
            label: {k: (r.metrics, r.samples) for k, r in found.items()} for label, found in tasks.items()
        },
        "logprobs": continuation_logprobs(target, PROMPTS, CONTINUATIONS),
        "rows": row_losses(adaptation.model, batches, team),
        "team": team.size,
    }


def met(team: Team, items: int = 5, fail: int | None = None, stop: int | None = None) -> dict[str, Any]:
    """What a division of some items comes to where item `fail` fails, or process `stop` is asked to stop."""
    worked: list[int] = []

    def work(item: int) -> int:
        worked.append(item)
        if item == fail:
            raise NumericalError(f"item {item} is no number")
        return 10 * item

    watch = Watch("items", items, lambda: stop == team.rank and len(worked) > 0)
    try:
        found = divided(range(items), work, watch, lambda item: 1, team)
    except LrftError as error:
        return {"error": f"{type(error).__name__}: {error}", "worked": worked}
    return {"found": found, "worked": worked}


def main() -> None:
    out, *runs = sys.argv[1:]
    found: dict[str, Any] = {Path(run).name: scores(Path(run)) for run in runs}
    team = Team.joined("cpu")  # type: ignore[arg-type]
    in_step = Team.joined("cpu", in_step=True)  # type: ignore[arg-type]
    found["met"] = {
        "whole": met(team),
        "failed": met(team, fail=3),
        "failed first": met(team, fail=0),
        "stopped": met(team, stop=1),
        "in step": met(in_step),
        "fewer than processes": met(in_step, items=1),
        "none": met(team, items=0),
    }
    assert in_step.order is not None
    in_step.order.note(7)
    found["met"]["same order"] = met(in_step, items=1)
    in_step.order.note(team.rank)
    found["met"]["other order"] = met(in_step, items=1)
    Path(f"{out}-{team.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
