"""Tasks that are learnt one after the other: what a run knows of them, and how each is scored."""

from __future__ import annotations

from functools import partial

from lrft.build.text import Text
from lrft.core.run import Run
from lrft.data.eval_batches import eval_batches
from lrft.data.steps import TrainData
from lrft.data.tasks import TasksInTurn
from lrft.evaluation.loss import held_out_loss
from lrft.evaluation.subject import EvaluationStopped
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError
from lrft.training.task_scores import TaskScores


def tasks_of(data: TrainData) -> dict[str, int]:
    """Name of each task -> the finished steps at its end; none where all rows are one task."""
    if not isinstance(data, TasksInTurn):
        return {}
    assert data.mixture is not None
    return dict(zip((share.name for share in data.mixture.shares), data.ends, strict=True))


def make_task_scores(recipe: Recipe, run: Run, text: Text) -> TaskScores | None:
    """The callback that scores every task after each; None where there is one task, or nothing is scored.

    Raises:
        DataError: a task has no held-out row that could be scored.
    """
    if not run.tasks or text.held_out is None:
        return None
    held, rows = text.held_out.sources, text.held_out_by_source(recipe.eval.limit)
    for task, name in zip(run.tasks, held, strict=True):
        if name not in rows:
            raise DataError(f"data.eval: task {task} has no held-out row with a token to score; add some")
    cut = partial(eval_batches, batch_tokens=recipe.eval.batch_tokens, pad_id=text.pad_id)

    def score(run: Run) -> list[float] | None:
        try:
            return [
                held_out_loss(
                    run.model, cut(rows[name]), lambda: run.stop_signal is not None, team=run.team
                ).loss
                for name in held
            ]
        except EvaluationStopped:
            return None

    return TaskScores(score)
