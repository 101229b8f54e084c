"""What stays in memory of a training that keeps some of it on a disk."""

from __future__ import annotations

from lrft.build.measured import Measured
from lrft.model.paged_activations import WAITING
from lrft.recipe.schema import Recipe

BLOCKS = 2  # of the model: the one that computes, and the next
INPUTS = WAITING + 2  # of layers: those that wait to be written, the one that is, and the one that is used


def weights_held(recipe: Recipe, counted: Measured, layers: int, head: int, ends: int) -> tuple[int, int]:
    """Bytes of the linear layers of the body, and of all other weights, that are there at once.

    Of the ends it is the head that is whole: the rows of an embedding that are looked up are few. What the layers have
    beside linear ones, such as experts in tensors of three dimensions, comes and goes with them.

    Args:
        layers: that the model has.
        head: bytes of its head.
        ends: bytes of embedding and head, once where they are one.
    """
    linear, other = counted["linear_bytes"], counted["weight_bytes"] - counted["linear_bytes"]
    if "weights" not in recipe.offload.parts:
        return linear, other
    beside = max(0, other - ends)
    return _of_blocks(linear, layers), min(other, head) + _of_blocks(beside, layers)


def _of_blocks(size: int, layers: int) -> int:
    return min(size, BLOCKS * size // layers)


def state_held(recipe: Recipe, state: int, layers: int) -> int:
    """Bytes of `state`, all that the optimizer keeps, that are there at once while it steps."""
    return min(state, BLOCKS * state // layers) if "optimizer" in recipe.offload.parts else state


def inputs_held(recipe: Recipe, recomputed: int) -> int:
    """Of how many recomputed layers the input is there at once."""
    return min(recomputed, INPUTS) if "activations" in recipe.offload.parts else recomputed
