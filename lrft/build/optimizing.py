"""The recipe's optimizer over parameters, with the way base weights are updated."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from lrft.core.params import ParamInfo
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import RecipeError
from lrft.training import updates

if TYPE_CHECKING:
    from lrft.build.offloading import Offloading


def build_optimizer(recipe: Recipe, infos: list[ParamInfo], away: Offloading | None = None) -> Optimizer:
    """The recipe's optimizer over these parameters, with the way base weights are updated.

    Args:
        away: keeps its state, where the recipe asks for it.

    Raises:
        RecipeError: the optimizer cannot take them.
    """
    cls = OPTIMIZERS.get(recipe.optimizer.method)
    try:
        made: Optimizer = updates.build(
            partial(cls.build, config=recipe.optimizer),
            infos,
            update=recipe.trainable.update,
            per_layer=recipe.optimizer.per_layer,
            seed=recipe.train.seed,
        )
    except ValueError as error:
        raise RecipeError(str(error), "optimizer") from None
    return made if away is None else away.keep_state(made, infos)
