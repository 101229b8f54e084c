"""What stays in memory of a training that keeps some of it on a disk."""

from __future__ import annotations

from lrft.build.measured import Measured
from lrft.model.paged_activations import WAITING
from lrft.recipe.schema import Recipe

BLOCKS = 2  # of the model: the one that computes, and the next
INPUTS = WAITING + 2  # of layers: those that wait to be written, the one that is, and the one that is used


def weights_held(recipe: Recipe, counted: Measured, layers: int, head: int) -> tuple[int, int]:
    """Bytes of the linear layers of the body, and of all other weights, that are there at once.

    Of the ends it is the head that is whole: the rows of an embedding that are looked up are few.

    Args:
        layers: that the model has.
        head: bytes of its head.
    """
    linear, other = counted["linear_bytes"], counted["weight_bytes"] - counted["linear_bytes"]
    if "weights" not in recipe.offload.parts:
        return linear, other
    return min(linear, BLOCKS * linear // layers), min(other, head)


def state_held(recipe: Recipe, state: int, layers: int) -> int:
    """Bytes of `state`, all that the optimizer keeps, that are there at once while it steps."""
    return min(state, BLOCKS * state // layers) if "optimizer" in recipe.offload.parts else state


def inputs_held(recipe: Recipe, recomputed: int) -> int:
    """Of how many recomputed layers the input is there at once."""
    return min(recomputed, INPUTS) if "activations" in recipe.offload.parts else recomputed
