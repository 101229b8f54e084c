"""The recipe's aggregator over what trains, and the cut of the model where it asks for one."""

from __future__ import annotations

from collections.abc import Sequence

from lrft.build.adaptation import Adaptation
from lrft.core.aggregate import Aggregator, Federation
from lrft.core.params import ParamInfo
from lrft.model.split import SplitModel
from lrft.recipe.schema import Recipe
from lrft.registry.axes import AGGREGATORS
from lrft.registry.errors import RecipeError

METHOD = "federate.aggregate.method"


def aggregator_of(recipe: Recipe, infos: Sequence[ParamInfo]) -> Aggregator:
    """The recipe's aggregator over what trains.

    Raises:
        RecipeError: it cannot average that.
    """
    asked = recipe.federate
    assert asked is not None, "a recipe of a federation"
    federation = Federation(asked.clients, asked.chosen, recipe.train.seed)
    try:
        made: Aggregator = AGGREGATORS.get(asked.aggregate.method)(asked.aggregate, federation, infos)
    except ValueError as error:
        raise RecipeError(f"{asked.aggregate.method} {error}", "federate.aggregate") from None
    return made


def split_of(
    recipe: Recipe, adaptation: Adaptation, aggregator: Aggregator, infos: Sequence[ParamInfo]
) -> SplitModel | None:
    """The model cut as the aggregator asks; None where clients hold all of it.

    Raises:
        RecipeError: the model cannot be cut so, or rows cannot be chosen one by one.
    """
    if aggregator.split is None:
        return None
    if adaptation.recomputed or recipe.model.compile:
        key, value = (
            ("model.compile", "false")
            if recipe.model.compile
            else ("model.activation_checkpointing", "false")
        )
        raise RecipeError(f"blocks of two machines are not computed as one; write {value}", key)
    if any(phase.keep < 1 for phase in aggregator.phases):
        _check_rows(recipe, adaptation)
    return SplitModel(adaptation.model, aggregator.split.head, aggregator.split.tail, infos)


def check_whole(aggregator: Aggregator, recipe: Recipe) -> None:
    """Refuse what exchanges hidden states batch by batch, where only messages of a round travel.

    Raises:
        RecipeError: the model is split.
    """
    if aggregator.split is not None:
        message = (
            "exchanges hidden states in every step, and Flower's messages are of a round; use lrft federate"
        )
        raise RecipeError(f"{aggregator.name} {message}", METHOD)


def _check_rows(recipe: Recipe, adaptation: Adaptation) -> None:
    if adaptation.packing:
        raise RecipeError("rows are chosen one by one, so none may share a row; write false", "train.packing")
    if recipe.model.head is not None:
        raise RecipeError(
            "rows are chosen by how their next tokens are predicted, and a score head predicts none; remove it, or "
            "choose another aggregator",
            "model.head",
        )
