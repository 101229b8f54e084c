"""What a model that scores whole texts cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.recipe.embedding_clashes import PASSAGES, embedding_objectives, embedding_tasks
from lrft.registry.axes import AXES, FORMATS, TASKS
from lrft.registry.errors import Problem
from lrft.registry.json import Json
from lrft.registry.section import RecipeView

HEAD = "score_head"
PAIRS = "pairs"
ANY_MODEL = "any_model"  # of tasks


def _named(value: Json) -> str | None:
    found = value.get("method") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _labels_that_nobody_learns(settings: RecipeView) -> Iterator[Problem]:
    """Tokens learnt in the place of labels, whichever way round."""
    objective = settings.declared("objective")
    learns = objective is not None and HEAD in objective.requires
    if settings["model.head"] is not None and not learns and objective is not None:
        learnt = "embeds texts" if PASSAGES in objective.requires else "learns tokens"
        message = f"scores whole texts, and {objective.name} {learnt}; write objective: "
        yield Problem("model.head", message + " or ".join(_learning()) + ", or remove it")
    form = _named(settings["data.format"])
    if form in FORMATS.names() and "labels" in FORMATS.declared(str(form)).provides and not learns:
        message = f"{form} gives labels, and no text to be learnt; write objective: "
        yield Problem("data.format.method", message + " or ".join(_learning()))


def _learning() -> list[str]:
    registry = AXES["objective"]
    return [name for name in registry.names() if HEAD in registry.declared(name).requires]


def _tasks_of_another_model(settings: RecipeView) -> Iterator[Problem]:
    tasks = settings["eval.tasks"]
    scores, objective = settings["model.head"] is not None, settings.declared("objective")
    embeds = objective is not None and PASSAGES in objective.requires
    for place, one in enumerate(tasks if isinstance(tasks, list) else []):
        name = _named(one)
        if name not in TASKS.names():
            continue
        if reason := why_not_scored(str(name), scores, embeds):
            yield Problem(f"eval.tasks.{place}", reason)


def why_not_scored(task: str, scores: bool, embeds: bool = False) -> str | None:
    """Why a task cannot score a model, by whether that scores or embeds whole texts; None where it can."""
    of_embeddings = task in embedding_tasks()
    if embeds and not of_embeddings:
        known = " or ".join(embedding_tasks())
        return f"{task} asks for tokens or labels, and the objective teaches the model to embed texts; choose {known}"
    if of_embeddings and not embeds:
        known = " or ".join(embedding_objectives())
        return f"{task} asks for embeddings, which the objective does not teach; write objective: {known}"
    if embeds or _fits(task, scores):
        return None
    if scores:
        fit = [name for name in TASKS.names() if _fits(name, True)]
        return f"{task} asks for tokens, and a model with model.head scores whole texts; choose {' or '.join(fit)}"
    return f"{task} asks for labels, and the model has no head for them; write model.head: [LABEL, ...]"


def _fits(task: str, scores: bool) -> bool:
    declared = TASKS.declared(task)
    return ANY_MODEL in declared.provides or scores == (HEAD in declared.requires)


def _tasks_of_other_rows(settings: RecipeView) -> Iterator[Problem]:
    """Labels asked of pairs, or preferences of single texts, in tasks that score the recipe's own format."""
    objective = settings.declared("objective")
    if settings["model.head"] is None or objective is None or HEAD not in objective.requires:
        return
    tasks, pairs = settings["eval.tasks"], PAIRS in objective.requires
    for place, one in enumerate(tasks if isinstance(tasks, list) else []):
        name = str(_named(one))
        own = isinstance(one, dict) and one.get("format") is not None
        if name not in TASKS.names() or own or HEAD not in TASKS.declared(name).requires:
            continue
        if (PAIRS in TASKS.declared(name).requires) != pairs:
            fit = [task for task in TASKS.names() if HEAD in TASKS.declared(task).requires]
            fit = [task for task in fit if (PAIRS in TASKS.declared(task).requires) == pairs]
            rows = "pairs" if pairs else "single texts"
            message = (
                f"{name} does not score {rows}, which {objective.name} learns; choose {' or '.join(fit)}"
            )
            yield Problem(f"eval.tasks.{place}", message)


def _margin_that_nobody_learns(settings: RecipeView) -> Iterator[Problem]:
    form = settings["data.format"]
    margin = form.get("margin") if isinstance(form, dict) else None
    if margin is not None and settings["model.head"] is None:
        message = "is of pairs that a score head learns; write model.head: [NAME], or remove it"
        yield Problem("data.format.margin", message)


def _parts_of_another_model(settings: RecipeView) -> Iterator[Problem]:
    if settings["model.head"] is None:
        return
    if settings["trainable.weights"] != "adapter":
        message = "weights of the base model cannot train beside model.head; write trainable: adapter"
        yield Problem("trainable.weights", message)
    if settings["model.adapter"] is not None:
        message = "is the start of a language model's adapter, and model.head begins anew; merge it and name the result"
        yield Problem("model.adapter", message)
    if settings["model.add_tokens"] is not None:
        message = (
            "adds rows to a head of tokens too, and with model.head nothing would teach them; remove one"
        )
        yield Problem("model.add_tokens", message)


HEAD_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _labels_that_nobody_learns,
    _tasks_of_another_model,
    _tasks_of_other_rows,
    _margin_that_nobody_learns,
    _parts_of_another_model,
)
