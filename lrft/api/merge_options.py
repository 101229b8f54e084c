"""What a merge was asked for, over what the run's recipe says."""

from __future__ import annotations

from lrft.export.fidelity import Fidelity
from lrft.export.merge import check_mergeable, only_rows_with, truncate
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe


def with_options(recipe: Recipe, onto: str | None, rounding: str | None, dtype: str | None) -> Recipe:
    """The recipe with what the command was asked for, and every default of `export` that depends on it."""
    section = recipe.export
    precision = dtype or section.dtype or recipe.model.dtype
    chosen = None if precision == "float32" else rounding or section.rounding or "stochastic"
    update = {"onto": onto or section.onto, "dtype": precision, "rounding": chosen}
    return recipe.model_copy(update={"export": section.model_copy(update=update)})


def as_asked(model: CausalLM, rank: int | None, features: str | None) -> Fidelity:
    """Reduce the adapters to what is to be merged; what of that the record says.

    Args:
        rank: keep only so many leading rank components.
        features: of the rows that the merged model is for, with commas between them.

    Raises:
        NotMergeable: they are no change of the weight.
        UsageError: there is no such feature, or rank.
    """
    if features is not None:
        only_rows_with(model, tuple(name.strip() for name in features.split(",") if name.strip()))
    check_mergeable(model)
    if rank is not None:
        truncate(model, rank)
    record: Fidelity = {} if rank is None else {"rank": rank}
    return record if features is None else {**record, "features": features}
