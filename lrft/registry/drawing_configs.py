"""What settings accept of objectives whose answers the model draws while it trains, and of rewards for these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from lrft.registry.errors import Problem
from lrft.registry.section import ADDED, MethodConfig, RecipeView


class RewardConfig(MethodConfig):
    """What every reward accepts."""

    weight: float = Field(
        1.0, description="what it is multiplied by before the rewards of an answer are added"
    )


class DrawingConfig(MethodConfig):
    """What every objective accepts that learns from answers which the model draws while it trains."""

    group: int = Field(8, gt=1, description="answers that are drawn to each prompt")
    max_new_tokens: int = Field(256, gt=0, description="longest answer, in tokens")
    temperature: float = Field(
        1.0, gt=0, description="logits are divided by it, in what is drawn and in what is learnt"
    )
    updates: int = Field(
        1, gt=0, description="optimizer steps on the same answers, before new ones are drawn"
    )
    beta: float = Field(
        0.04,
        ge=0,
        description="how strongly the model is held to the base without its adapters; 0 for not at all",
    )
    redraws: Annotated[int, ADDED] = Field(
        0,
        ge=0,
        le=255,
        description="how often at most a prompt whose answers are all worth the same is replaced by another in a step",
    )

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """What knows the rows before they are drawn, goes by the loss, or draws from other weights than it trains."""
        reasons = {
            "train.packing": (
                recipe["train.packing"] is True,
                "answers are drawn later than rows are packed; write false",
            ),
            "train.shard_base": (
                recipe["train.shard_base"] is True,
                "answers take unequally many passes; write false",
            ),
            "train.stop_below": (
                recipe["train.stop_below"] is not None,
                "the loss does not say how good answers are; write null",
            ),
            "adapter.dropout": (
                self.updates > 1 and recipe["adapter.dropout"],
                "a later step would compare a model with dropout and one without; write 0, or objective.updates: 1",
            ),
            "train.neftune": (
                self.updates > 1 and recipe["train.neftune"] is not None,
                "a later step would compare a model with noise and one without; write null, or objective.updates: 1",
            ),
        }
        yield from (Problem(key, message) for key, (wrong, message) in reasons.items() if wrong)
        optimizer, adapter = recipe.declared("optimizer"), recipe.declared("adapter")
        if optimizer is not None and "averaged" in optimizer.provides:
            message = f"{optimizer.name} takes gradients at other weights than answers are drawn with; choose another"
            yield Problem("optimizer.method", message)
        if optimizer is not None and "backward" not in optimizer.requires:
            message = (
                f"{optimizer.name} compares losses, which do not say how good answers are; choose another"
            )
            yield Problem("optimizer.method", message)
        trains = recipe["trainable.weights"] != "adapter"
        if self.beta and (trains or adapter is None or "own_weights" in adapter.provides):
            yield Problem(
                "objective.beta", "weights of the base train, so there is no base to be held to; write 0"
            )
