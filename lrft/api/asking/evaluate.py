"""`lrft eval`: a run's adapter, and the bare base beside it, on tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrft.api.opening.open_run import bare_base, check_base, open_checkpoint
from lrft.build.scoring import subject, tasks_of
from lrft.core import stop
from lrft.evaluation.harness import harness_results
from lrft.evaluation.report import NotReported, write_report
from lrft.evaluation.run import describe, evaluate_tasks, metrics_of, scored_as
from lrft.evaluation.subject import EvaluationStopped, Progress, Subject
from lrft.evaluation.tasks._task import TaskResult
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.head_clashes import why_not_scored
from lrft.recipe.schema import Recipe
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig, parse_choice
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.chosen import find_checkpoint
from lrft.training.folder import RunFolder

AGAIN = "the same command scores all of it"
NO_SCORE = f"nothing was scored yet; {AGAIN}"


def evaluate(
    run: RunFolder | Path | str | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    baseline: bool = False,
    progress: Progress | None = None,
    checkpoint: str | None = None,
    harness: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> dict[str, dict[str, TaskResult]]:
    """Score a run's adapter, and the bare base beside it if asked; returns label -> task -> result.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        tasks: by name; by default those of the recipe.
        limit: score only the first so many rows.
        baseline: score the bare base model as well.
        progress: hears (what, done, total).
        checkpoint: `best`, `last` or `step-N`; by default the newest. One that was named has files of its own.
        harness: tasks of lm-eval to run instead, by name or .yaml file; their scores go to `eval/harness-LABEL.json`.
        trust_remote_code: let code run that comes with the base model.

    Processes that a launcher started share the batches; each returns the whole result, and the first writes it.

    The base is as it is stored, quantized if the recipe says so, and without anything that was trained: base weights
    that trained have their pretrained values again.

    Raises:
        NotReported: a report could not be written; it holds all results.
        UsageError: the recipe names no task and no held-out rows; there is no such checkpoint, or no base to score.
        Interrupted: somebody asked to stop; its record holds the scores of the tasks that were finished.
    """
    _check_asked(tasks, harness)
    with stop.listening(NO_SCORE):
        folder = find_checkpoint(run, checkpoint)
        folder.trusted = trust_remote_code
        return _evaluate(folder, tasks, limit, baseline, progress, harness)


def _evaluate(
    folder: RunFolder,
    tasks: Sequence[str],
    limit: int | None,
    baseline: bool,
    progress: Progress | None,
    harness: Sequence[str],
) -> dict[str, dict[str, TaskResult]]:
    opened = open_checkpoint(folder, scores=True)
    recipe, text, adaptation = opened.recipe, opened.text, opened.adaptation
    if baseline:
        check_base(recipe, adaptation.model, "--baseline")
    if harness and recipe.model.head is not None:
        raise UsageError(
            "--harness: its tasks ask for tokens, and this model scores whole texts (model.head)"
        )
    if harness and embeds(recipe.objective.method):
        raise UsageError("--harness: its tasks ask for tokens, and this model was trained to embed texts")
    chosen = [] if harness else _tasks(recipe, tasks)
    team = adaptation.team
    target = subject(recipe, text, adaptation.model, progress if team.rank == 0 else None, team)
    written = folder.path if team.rank == 0 else None
    limit = limit or recipe.eval.limit
    name = "adapter" if folder.chosen is None else f"adapter-{folder.chosen.name}"

    failures: list[NotReported] = []
    results: dict[str, dict[str, TaskResult]] = {}

    def score(label: str, of: str | None) -> dict[str, TaskResult]:
        about = scored_as(of, limit, opened.trained_on.sums())
        try:
            return _score(target, chosen, harness, limit, written, label, about)
        except NotReported as error:  # told once everything that was asked for is scored
            failures.append(error)
            return dict(next(iter(error.results.values())))

    with _scored_so_far(results):
        results["adapter"] = score(name, opened.checkpoint)
        if baseline:
            with bare_base(recipe, folder, adaptation.model):
                results["baseline"] = score("baseline", None)
    if failures:
        raise NotReported(failures[0], results)
    return results


def _check_asked(tasks: Sequence[str], harness: Sequence[str]) -> None:
    """What is wrong whatever the run is, before anything of it is loaded."""
    if harness and tasks:
        raise UsageError("--harness, --task: give one of them at a time")
    unknown = [name for name in tasks if name not in TASKS.names()]
    if unknown:
        raise UsageError(f"--task {unknown[0]}: no such task{did_you_mean(unknown[0], TASKS.names())}")


def _score(
    target: Subject,
    tasks: Sequence[MethodConfig],
    harness: Sequence[str],
    limit: int | None,
    folder: Path | None,
    label: str,
    about: Mapping[str, Json],
) -> dict[str, TaskResult]:
    if not harness:
        return evaluate_tasks(target, tasks, limit, folder, label, about)
    found = harness_results(target, harness, limit)
    if folder is not None:
        with stop.held():
            write_report(folder, f"harness-{label}", found, {**describe(target), **about})
    return found


@contextmanager
def _scored_so_far(results: dict[str, dict[str, TaskResult]]) -> Iterator[None]:
    """Whoever stops within it is told which tasks have scores, and given them.

    Raises:
        Interrupted: in the place of a stop; its record is label -> task -> metrics.
    """
    try:
        yield
    except (EvaluationStopped, stop.Stopped) as stopped:
        part = stopped if isinstance(stopped, EvaluationStopped) else EvaluationStopped(0, 0)
        label = "baseline" if "adapter" in results else "adapter"
        found = {**results, **({label: part.finished} if part.finished else {})}
        before = "the adapter is scored; of the baseline " if label == "baseline" else ""
        record = {name: metrics_of(tasks) for name, tasks in found.items()}
        raise part.telling(f"{before}{part.scored}; {AGAIN}", record or None) from None


def _tasks(recipe: Recipe, names: Sequence[str]) -> list[MethodConfig]:
    known = {task.method: task for task in recipe.eval.tasks}
    if names:
        for name in names:
            if reason := why_not_scored(name, recipe.model.head is not None, embeds(recipe.objective.method)):
                raise UsageError(f"--task {name}: {reason}")
        return [known.get(name) or parse_choice(TASKS, name) for name in names]
    if not recipe.eval.tasks and not recipe.data.holds_out:
        raise UsageError("eval.tasks: the recipe names no task and no data.eval; add one, or --task NAME")
    return tasks_of(recipe)
