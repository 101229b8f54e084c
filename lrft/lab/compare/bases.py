"""Base models scored as they are on the tasks of one recipe: which is the strongest before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from lrft.build.dataset import read_text
from lrft.build.scoring import subject, tasks_of
from lrft.core import stop
from lrft.core.notes import say
from lrft.core.plain import plain
from lrft.evaluation.intervals import mcnemar
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.run import evaluate_tasks
from lrft.evaluation.subject import EvaluationStopped
from lrft.evaluation.tasks._task import TaskResult
from lrft.files.made_records import BasesRecord
from lrft.files.own import check_own
from lrft.files.write import write_file
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.recipe.merge import is_override
from lrft.recipe.schema import Recipe
from lrft.registry.axes import TASKS
from lrft.registry.errors import RecipeError, UsageError
from lrft.registry.json import Json
from lrft.training.device import make_accelerator

RECORD = "bases.json"
Metrics = dict[str, dict[str, dict[str, float]]]


class Against(TypedDict):
    """The best base beside another: rows that one alone has right, and the exact test of the two counts."""

    best_alone: int
    other_alone: int
    mcnemar_p: float


class Best(TypedDict):
    """Of one score of one task: the best base, and what speaks for it row by row, where rows are right or wrong."""

    base: str
    value: float
    better: str
    against: dict[str, Against]


class Bases(TypedDict):
    """What bases.json holds: base -> task -> scores, `TASK.SCORE` -> the best base, and what was not ranked."""

    recipe: str
    scores: Metrics
    best: dict[str, Best]
    not_ranked: list[str]


def compare_bases(
    arguments: Sequence[str], bases: Sequence[str], out: Path, trust_remote_code: bool = False
) -> Bases:
    """Score each base on the recipe's `eval.tasks`, dense and without anything trained, and say which is best.

    Each is asked in its own tokens, by its own chat template. Scores per token are not ranked where the tokenizers
    differ, as the tokens of one are others than those of the next.

    Args:
        arguments: one recipe, and overrides that hold for all.
        bases: values of `model.name`, two or more.

    Raises:
        UsageError: the bases or recipes make no comparison, or somebody else's file has the record's name.
        RecipeError, DataError: a base cannot be loaded, or a row not be scored.
    """
    overrides = [argument for argument in arguments if is_override(argument)]
    sources = [argument for argument in arguments if not is_override(argument)]
    if len(sources) != 1:
        raise UsageError(f"--base: models are compared on one recipe, and {len(sources)} are named")
    if len(set(bases)) < len(bases) or len(bases) < 2:
        raise UsageError("--base: name two base models or more, each once")
    check_own(out, RECORD, BasesRecord, what="a comparison")
    recipes = {
        base: load_recipe(sources[0], [*overrides, f"model.name={json.dumps(base)}"]).recipe for base in bases
    }
    with stop.listening("nothing was written; the same command scores all of it"):
        found: dict[str, dict[str, TaskResult]] = {}
        words: list[dict[str, int]] = []
        for base, recipe in recipes.items():
            say(f"scoring {base}")
            found[base], vocabulary = _score(recipe, trust_remote_code)
            words.append(vocabulary)
        alike = all(one == words[0] for one in words)
        record: Bases = {
            "recipe": sources[0],
            "scores": {
                base: {task: dict(one.metrics) for task, one in tasks.items()}
                for base, tasks in found.items()
            },
            **_ranked(found, alike),  # type: ignore[typeddict-item]
        }
        with stop.held():
            write_file(
                out / RECORD, json.dumps(plain(record), indent=2, allow_nan=False) + "\n", f"--out {out}"
            )
    return record


def _score(recipe: Recipe, trusted: bool) -> tuple[dict[str, TaskResult], dict[str, int]]:
    """Task -> result of one base, and its vocabulary."""
    if recipe.model.head is not None:
        raise RecipeError(
            "a base has no score head, which begins at random; remove it to compare bases", "model.head"
        )
    text = read_text(recipe, training=False, trust_remote_code=trusted)
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    model = load_model(recipe.model, device=device, trust_remote_code=trusted, seed=recipe.train.seed).to(
        device
    )
    try:
        with EvaluationBar() as show:
            target = subject(recipe, text, model, show)
            results = evaluate_tasks(target, tasks_of(recipe), recipe.eval.limit, None, "base")
    except EvaluationStopped as stopped:
        raise stopped.telling("nothing was written; the same command scores all of it", None) from None
    return results, dict(text.tokenizer.get_vocab())


def _ranked(found: Mapping[str, Mapping[str, TaskResult]], alike: bool) -> dict[str, object]:
    best: dict[str, Best] = {}
    left_out = []
    for task, result in next(iter(found.values())).items():
        cls = TASKS.get(task.partition("-")[0])
        for score, better in cls.better.items():
            if score not in result.metrics:
                continue
            name = f"{task}.{score}"
            if cls.per_token and not alike:
                left_out.append(f"{name}: it is a mean over tokens, and the bases have other tokens each")
                continue
            best[name] = _best(
                {base: tasks[task] for base, tasks in found.items()}, score, better, cls.right_is
            )
    return {"best": best, "not_ranked": left_out}


def _best(results: Mapping[str, TaskResult], score: str, better: str, right_is: str | None) -> Best:
    sign = 1 if better == "higher" else -1
    first = max(results, key=lambda base: sign * results[base].metrics[score])
    rows = {base: rows_right(one, score, right_is) for base, one in results.items()}
    against = {
        base: _against(rows[first], right)
        for base, right in rows.items()
        if base != first and right and len(right) == len(rows[first])
    }
    return {"base": first, "value": results[first].metrics[score], "better": better, "against": against}


def _against(best: Sequence[bool], other: Sequence[bool]) -> Against:
    pairs = list(zip(best, other, strict=True))
    mine, theirs = (sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
    return {"best_alone": mine, "other_alone": theirs, "mcnemar_p": mcnemar(mine, theirs)}


def rows_right(result: TaskResult, score: str, right_is: str | None) -> list[bool]:
    """Which rows are right, of a score that is the share of these; nothing of any other score.

    Args:
        right_is: the score whose rows `correct` of a sample is about (`Task.right_is`).
    """
    found = [_is_right(sample, score, right_is) for sample in result.samples]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) == result.n else []


def _is_right(sample: Mapping[str, Json], score: str, right_is: str | None) -> bool | None:
    by_score = sample.get("right")
    value = by_score.get(score) if isinstance(by_score, dict) else None
    if value is None and score == right_is:
        value = sample.get("correct")
    return value if isinstance(value, bool) else None
