"""Settings that count steps, checked against the length of the run as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrft.recipe.schema import Recipe
from lrft.registry.config import Section
from lrft.registry.errors import Problem, RecipeError


def check_length(recipe: Recipe, total_steps: int | None, ranks: Sequence[int] = ()) -> None:
    """Refuse settings that do not fit into a run of so many optimizer steps.

    Args:
        total_steps: None where nobody knows.
        ranks: the rank of every adapted site, where it is known already.

    Raises:
        RecipeError: with every setting that does not fit.
    """
    problems = length_problems(recipe, total_steps, ranks)
    if problems:
        raise RecipeError(problems)


def length_problems(recipe: Recipe, total_steps: int | None, ranks: Sequence[int] = ()) -> list[Problem]:
    """The same as a list. A recipe with `train.max_steps` may be asked before its data are read: no run is longer.

    Args:
        total_steps: None where nobody knows.
    """
    if total_steps is None:
        return []
    found: list[Problem] = []
    for section in _sections(recipe):
        try:
            section.check_length(total_steps, ranks)
        except RecipeError as error:
            found += error.problems
    return found


def _sections(recipe: Recipe) -> Iterator[Section]:
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        yield from (
            one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Section)
        )
