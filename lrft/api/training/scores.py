"""The tasks of a recipe at the end of its training, where it asks for that."""

from __future__ import annotations

from lrft.build.job import Job, subject
from lrft.build.scoring import tasks_at_end
from lrft.core.notes import say
from lrft.core.plain import plain
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.report import NotReported
from lrft.evaluation.run import evaluate_tasks, metrics_of, scored_as
from lrft.evaluation.subject import EvaluationStopped
from lrft.training.trackers.tracker import trackers_of


def score_at_end(job: Job) -> None:
    """Score what was trained as `lrft eval` does, into the same files, and keep the metrics for result.json.

    Before the adapter and result.json are written: a run whose scores were cut short, or could not be taken, is not
    complete, and gone on with it takes them.

    Raises:
        DataError: a row cannot be scored.
        NotReported: the scores could not be written; they are told.
        Interrupted: somebody asked to stop; its record holds the scores of the tasks that were finished.
    """
    run, recipe = job.run, job.run.recipe
    tasks = tasks_at_end(recipe)
    if not tasks:
        if recipe.eval.tasks and recipe.train.eval_tasks_every is None:
            say(f"eval.tasks are not scored yet: lrft eval {job.folder.path}")
        return
    with EvaluationBar() as show:
        target = subject(recipe, job.text, run.model, show if run.rank == 0 else None, run.team)
        folder = job.folder.path if run.rank == 0 else None
        sums = {} if job.trained_on is None else job.trained_on.sums()
        about = scored_as(f"step-{run.step}", recipe.eval.limit, sums)
        try:
            results = evaluate_tasks(target, tasks, recipe.eval.limit, folder, "adapter", about)
        except NotReported as error:
            _tell(error)
            raise
        except EvaluationStopped as stopped:
            saved = f"step {run.step} of {run.total_steps} is saved, {stopped.scored}"
            kept = f"{saved}; add --resume to score the rest, and eval.at_end=false to end without"
            found = metrics_of(stopped.finished)
            raise stopped.telling(kept, {"scores": found} if found else None) from None
    found = metrics_of(results)
    run.summary["scores"] = plain(found)
    numbers = {f"{task}.{name}": value for task, metrics in found.items() for name, value in metrics.items()}
    for tracker in trackers_of(run):
        tracker.scored(numbers, run.step)


def _tell(error: NotReported) -> None:
    for tasks in error.results.values():
        for task, result in tasks.items():
            say(f"{task}: {', '.join(f'{name} {value:.4g}' for name, value in result.metrics.items())}")
