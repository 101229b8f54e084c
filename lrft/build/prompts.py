"""Rows whose answers the model is to draw, looked at before any weight is read."""

from __future__ import annotations

from lrft.build.reworded import find_questions
from lrft.build.text import Text
from lrft.core.drawing import Drawing
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import DataError


def check_prompts(recipe: Recipe, text: Text) -> None:
    """Refuse rows to which no answer can be drawn, or none rewarded.

    Raises:
        DataError: a row has no prompt, or one that leaves no room for the longest answer, or an answer that a reward
            cannot compare with; by file and line.
        RecipeError: a reward is not to be had.
    """
    if "draws" not in OBJECTIVES.declared(recipe.objective.method).provides:
        return
    objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
    assert isinstance(objective, Drawing) and text.rows is not None
    rewards, limit = objective.rewards(), objective.config.max_new_tokens
    asked = find_questions(objective, text.renderer, text.rows)
    for index, encoded in enumerate(text.train):
        if not encoded.targets:
            continue
        try:
            question = asked(text.rows[index])
        except DataError as error:
            raise DataError(f"{text.rows.where(index)}: {error}") from error
        problem, length = "", len(question.prompt) + limit
        if not question.prompt:
            problem = (
                f"the row has no prompt in the {text.renderer.format.name} format, so nothing can be answered"
            )
        elif length > recipe.train.max_length:
            problem = (
                f"its prompt of {len(question.prompt)} tokens and an answer of {limit} are more than train.max_length "
                f"{recipe.train.max_length}; raise that, or lower objective.max_new_tokens"
            )
        if problem:
            raise DataError(f"{text.rows.where(index)}: {problem}")
        for one in rewards:
            try:
                one.check(question.reference, limit)
            except DataError as error:
                raise DataError(f"{text.rows.where(index)}: {error}") from error
