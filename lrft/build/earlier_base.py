"""Whether what was trained before was trained on this base: by its fingerprint, and by all values of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrft.model.causal_lm import CausalLM
from lrft.model.take_over import KEY
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from lrft.build.earlier import Earlier


def check_base(earlier: Earlier, recipe: Recipe, model: CausalLM) -> None:
    """Refuse what was trained on another base.

    Raises:
        RecipeError: with both sums.
    """
    if earlier.base is not None and earlier.base != model.fingerprint:
        raise RecipeError(
            f"{recipe.model.adapter} was trained on another base model (fingerprint {earlier.base[:12]}, this one has "
            f"{model.fingerprint[:12]}); give the model.name and revision of that run",
            KEY,
        )
    values = model.weight_sums
    if earlier.values is not None and values is not None and earlier.values != values.whole:
        raise RecipeError(
            f"{recipe.model.adapter} was trained on another base model (sha256 of its weights {earlier.values[:12]}, "
            f"of these {values.whole[:12]}); put the weights of model.name back, or give the model.name of that run",
            KEY,
        )


def check_same_base(earlier: Earlier, model: CausalLM, what: str, name: str) -> None:
    """The same of an adapter that a command names.

    Args:
        what: how it is named, such as `--add runs/a`.
        name: of the base.

    Raises:
        UsageError: it was trained on another base.
    """
    if earlier.base is not None and earlier.base != model.fingerprint:
        raise UsageError(f"{what}: was trained on another base model; name one of {name}")
    values = model.weight_sums
    if earlier.values is not None and values is not None and earlier.values != values.whole:
        raise UsageError(f"{what}: the weights that it was trained on are not these; name another run")
