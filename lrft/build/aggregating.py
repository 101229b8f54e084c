"""The recipe's aggregator over what trains, and the cut of the model where it asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lrft.build.adaptation import Adaptation
from lrft.core.aggregate import Aggregator, Federation, Split
from lrft.core.params import ParamInfo
from lrft.core.privacy import Secret
from lrft.model.split import SplitModel
from lrft.ops.metric_noise import metric_noise
from lrft.recipe.embedding_clashes import embeds
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


def hiding(split: Split, secret: Secret, seed: int, round: int) -> Callable[[Tensor], Tensor] | None:
    """Adds the noise of a client's round to what it sends up, in order; None where there is none.

    Args:
        seed: tells clients apart.
    """
    if split.eta is None:
        return None
    eta, drawn = split.eta, secret.generator("link", seed, round)

    def hide(hidden: Tensor) -> Tensor:
        noise = metric_noise(hidden.shape, eta, drawn).to(hidden.device)
        return (hidden.float() + noise).to(hidden.dtype)

    return hide


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
    if embeds(recipe.objective.method):
        raise RecipeError(
            "rows are chosen by how their next tokens are predicted, and texts to embed have none; choose another "
            "aggregator",
            METHOD,
        )
