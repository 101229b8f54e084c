"""What evaluation tasks score, and what of a recipe is scored while it trains and says what the best step is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from lrft.build.text import Text
from lrft.core.batch import Batch
from lrft.core.run import Run
from lrft.core.team import ALONE, Team
from lrft.data.eval_batches import eval_batches
from lrft.evaluation.loss import held_out_loss, row_losses, together
from lrft.evaluation.run import evaluate_tasks
from lrft.evaluation.subject import EvaluationStopped, Progress, Subject
from lrft.evaluation.tasks._task import TaskResult
from lrft.model.causal_lm import CausalLM
from lrft.recipe.embedding_clashes import embedding_tasks, embeds
from lrft.recipe.schema import Recipe
from lrft.recipe.scores import LOSS, directions
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig, parse_choice
from lrft.registry.errors import DataError, NumericalError, RecipeError
from lrft.training.diagnose import first_module
from lrft.training.scorer import Metric, Scorer, Timed

# What is tried before the first step: rows, and tokens of their answers, one from the prompt and one from what is kept.
FEW, ANSWERED = 8, 2


def subject(
    recipe: Recipe, text: Text, model: CausalLM, progress: Progress | None = None, team: Team = ALONE
) -> Subject:
    """What the evaluation tasks score."""
    return Subject(
        model=model,
        tokenizer=text.tokenizer,
        renderer=text.renderer,
        rows=text.held_out,
        stop_ids=text.stop_ids,
        pad_id=text.pad_id,
        batch_tokens=recipe.eval.batch_tokens,
        progress=progress,
        team=team,
        data_seed=text.seed,
    )


def make_scorer(recipe: Recipe, run: Run, text: Text, subject: Subject) -> Scorer | None:
    """The callback that scores; None where the recipe asks for no score while it trains."""
    settings = recipe.train
    known = directions(recipe.model_dump(mode="json")["eval"]["tasks"])
    metric = (
        Metric() if settings.metric == LOSS else Metric(settings.metric, known[settings.metric] == "higher")
    )
    scores: dict[str, Timed] = {}
    probe: Callable[[Run], object] = _nothing
    if settings.eval_every is not None:
        by_source = text.held_out_by_source(recipe.eval.limit)
        cut = partial(eval_batches, batch_tokens=recipe.eval.batch_tokens, pad_id=text.pad_id)
        batches = partial(cut, list(chain.from_iterable(by_source.values())))
        run.score = lambda: row_losses(run.model, batches(), run.team)
        scores[LOSS] = Timed(
            settings.eval_every,
            lambda run: _loss(run, {name: cut(rows) for name, rows in by_source.items()}),
        )
        # Longest rows come first, so the first batch asks for the most memory.
        probe = lambda run: held_out_loss(run.model, islice(batches(), 1))  # noqa: E731
    if settings.eval_tasks_every is not None:
        watched = replace(subject, should_stop=lambda: run.stop_signal is not None)
        scores["tasks"] = Timed(settings.eval_tasks_every, lambda run: _tasks(recipe, watched, set(known)))
    first = LOSS if settings.metric == LOSS else "tasks"
    ordered = [scores[name] for name in sorted(scores, key=lambda name: name != first)]
    return Scorer(ordered, probe, metric, settings.patience) if ordered else None


def tasks_of(recipe: Recipe) -> list[MethodConfig]:
    """What is scored where nobody names a task: those of the recipe, or what its held-out rows are scored by."""
    by_rows = embedding_tasks() if embeds(recipe.objective.method) else [LOSS]
    return list(recipe.eval.tasks) or [parse_choice(TASKS, name) for name in by_rows]


def tasks_at_end(recipe: Recipe) -> list[MethodConfig]:
    """What is scored after the last step: what the recipe asks for, or by default what that step has not scored."""
    if recipe.eval.at_end is not None:
        return tasks_of(recipe) if recipe.eval.at_end else []
    while_it_trains = recipe.train.eval_tasks_every if recipe.eval.tasks else recipe.train.eval_every
    there = recipe.eval.tasks or recipe.data.holds_out
    return tasks_of(recipe) if there and while_it_trains is None else []


def probe_tasks(recipe: Recipe, subject: Subject) -> None:
    """Score one row of every task that the run will score: what cannot be scored fails now and not after hours.

    Raises:
        DataError, RecipeError: a task has no rows, or one that cannot be scored; or the task that says which step is
            the best does not take its score, as it is set.
        UsageError: the model cannot answer.
    """
    if recipe.train.eval_tasks_every is None and not tasks_at_end(recipe):
        return
    subject = replace(subject, most_new=ANSWERED)
    try:
        results = _probed(recipe, subject)
    except (DataError, RecipeError) as error:
        if recipe.train.eval_tasks_every is not None or recipe.eval.at_end is not None:
            raise
        message = f"{error}; or train without the scores by eval.at_end=false"
        raise (DataError(message) if isinstance(error, DataError) else RecipeError(message)) from error
    except NumericalError as error:
        with first_module(subject.model) as seen, suppress(NumericalError):
            evaluate_tasks(subject, tasks_of(recipe), 1, None, "")
        raise NumericalError(f"{error}, first in the output of {seen[0]}" if seen else str(error)) from None
    metric = recipe.train.metric
    taken = [f"{task}.{name}" for task, result in results.items() for name in result.metrics]
    if metric != LOSS and metric not in taken:
        message = f"the task does not take {metric} as it is set; choose one of {', '.join(taken)}"
        raise RecipeError(message, "train.metric")


def _probed(recipe: Recipe, subject: Subject) -> dict[str, TaskResult]:
    """The results of the first row, or where it has nothing to score of the first few: it would be left out."""
    try:
        return evaluate_tasks(subject, tasks_of(recipe), 1, None, "")
    except DataError:
        return evaluate_tasks(subject, tasks_of(recipe), FEW, None, "")


def _loss(run: Run, batches: Mapping[str, Iterable[Batch]]) -> dict[str, float] | None:
    """The held-out loss, and that of every source where there are several."""
    try:
        found = {
            name: held_out_loss(run.model, part, lambda: run.stop_signal is not None, team=run.team)
            for name, part in batches.items()
        }
    except EvaluationStopped:
        return None
    result = together(found) if len(found) > 1 else next(iter(found.values()))
    parts = {f"eval_loss/{name}": part.loss for name, part in found.items()} if len(found) > 1 else {}
    whole = {} if run.model.labels else {"eval_perplexity": result.perplexity}  # of tokens alone
    return {"eval_loss": result.loss, **whole, **parts}


def _tasks(recipe: Recipe, subject: Subject, known: set[str]) -> dict[str, float] | None:
    """The scores of the tasks as `TASK.SCORE`; of a task that declares none, all its numbers."""
    try:
        results = evaluate_tasks(subject, recipe.eval.tasks, recipe.eval.limit, None, "")
    except EvaluationStopped:
        return None
    silent = results.keys() - {name.partition(".")[0] for name in known}
    return {
        f"{task}.{name}": value
        for task, result in results.items()
        for name, value in result.metrics.items()
        if f"{task}.{name}" in known or (task in silent and math.isfinite(value))
    }


def _nothing(run: Run) -> None:
    """No batch to try: tasks are tried before the run begins."""
