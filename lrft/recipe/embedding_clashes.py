"""What a model that embeds texts cannot be asked: it predicts no token and gives no label."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.registry.axes import AXES, FORMATS, TASKS
from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView

PASSAGES = "passages"


def embeds(objective: str) -> bool:
    """Whether an objective teaches a model to embed texts, in the place of predicting tokens."""
    return PASSAGES in AXES["objective"].declared(objective).requires


def embedding_objectives() -> list[str]:
    """The objectives that teach a model to embed texts."""
    return [name for name in AXES["objective"].names() if embeds(name)]


def embedding_tasks() -> list[str]:
    """The tasks that score embeddings."""
    return [name for name in TASKS.names() if PASSAGES in TASKS.declared(name).requires]


def _embeds(settings: RecipeView) -> bool:
    objective = settings.declared("objective")
    return objective is not None and PASSAGES in objective.requires


def _passages_that_nobody_embeds(settings: RecipeView) -> Iterator[Problem]:
    form, objective = settings["data.format"], settings.declared("objective")
    name = form.get("method") if isinstance(form, dict) else form
    if not isinstance(name, str) or name not in FORMATS.names() or objective is None:
        return
    if PASSAGES in FORMATS.declared(name).provides and not _embeds(settings):
        fit = " or ".join(embedding_objectives())
        message = f"{name} gives texts to embed, and {objective.name} learns none; write objective: {fit}"
        yield Problem("data.format.method", message)


def _texts_cut_by_one_another(settings: RecipeView) -> Iterator[Problem]:
    cut = settings["data.too_long"]
    if _embeds(settings) and cut in ("truncate_left", "truncate_right"):
        message = (
            "would cut each text by the room that the others of its row leave, so that a passage were not the same "
            "everywhere; write drop, and data.format.max_tokens: N for the length of a text"
        )
        yield Problem("data.too_long", message)


def _losses_of_single_rows(settings: RecipeView) -> Iterator[Problem]:
    if not _embeds(settings):
        return
    tasks = " or ".join(embedding_tasks())
    remedy = f"write train.eval_tasks_every: STEPS and eval.tasks: [{tasks}]"
    if settings["train.eval_every"] is not None:
        message = f"a row of texts to embed has no loss by itself; {remedy}"
        yield Problem("train.eval_every", message)
    if settings["data.mix.order"] == "in_turn" and (
        settings["data.eval"] is not None or settings["data.split"] is not None
    ):
        message = (
            f"scores every task by its held-out loss, which texts to embed have not; write mixed, or {remedy}"
        )
        yield Problem("data.mix.order", message)


EMBEDDING_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _passages_that_nobody_embeds,
    _texts_cut_by_one_another,
    _losses_of_single_rows,
)
