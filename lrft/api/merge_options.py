"""What a merge was asked for on the command line, as a recipe says it."""

from __future__ import annotations

from lrft.recipe.schema import Recipe


def with_options(recipe: Recipe, onto: str | None, rounding: str | None, dtype: str | None) -> Recipe:
    """The recipe with what the command was asked for, and every default of `export` that depends on it."""
    section = recipe.export
    precision = dtype or section.dtype or recipe.model.dtype
    chosen = None if precision == "float32" else rounding or section.rounding or "stochastic"
    update = {"onto": onto or section.onto, "dtype": precision, "rounding": chosen}
    return recipe.model_copy(update={"export": section.model_copy(update=update)})
