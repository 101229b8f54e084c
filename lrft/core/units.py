"""`Units`: parts of a block that go together, and `Pruner`: a method that makes a model smaller by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrft.core.callback import TimedMethod
from lrft.registry.errors import RecipeError

WHOLE, HIDDEN, CUT = "whole", "hidden", "cut"


@dataclass(frozen=True)
class Units:
    """Parts of one block of which each can go as a whole: heads with the keys and values they share, or channels.

    Attributes:
        name: path of the block.
        kind: `heads` of an attention, or `channels` of a feed-forward block.
        depth: which decoder layer the block stands in, from 0 on.
        count: how many there are.
        rows: linear layer -> rows of its weight (out, in) that a unit has, one unit after the other.
        columns: linear layer -> columns that a unit has; hiding units is zeroing these of the layer's input.
    """

    name: str
    kind: str
    depth: int
    count: int
    rows: Mapping[str, int]
    columns: Mapping[str, int]

    @property
    def layers(self) -> list[str]:
        """The linear layers that lose rows or columns."""
        return [*self.rows, *self.columns]

    def sums(self, layer: str, values: Tensor) -> Tensor:
        """(out, in) of a layer -> the sum over each unit's rows, or columns, (count,)."""
        along = values.sum(1) if layer in self.rows else values.sum(0)
        return along.view(self.count, -1).sum(1)


@dataclass
class Pruned:
    """What of a model's units stays, and what becomes of the others.

    Attributes:
        units: of the model before any pruning, by name.
        stays: by name, (count,) uint8: 1 of a unit that stays. Changed in place while a run prunes.
        state: `hidden` (computed as if they were gone, and cut off when merged), `cut` off already, or `whole`: the
            model has all of them, and an adapter that trained without some is put in its place among them.
    """

    units: dict[str, Units]
    stays: dict[str, Tensor]
    state: str


class Pruner(TimedMethod):
    """A method of the axis `prune`.

    With the trait `hidden_units` it hides units while the model trains (`run.model.pruned`), and they are cut off when
    the model is merged. With `cut_units` it says which stay before anything trains; where an adapter trains then, the
    adapter is recovered for the whole model, and where weights do, the model stays small.
    """

    provides: ClassVar[set[str]] = set()

    def choose(self, units: list[Units], weight: Callable[[str], Tensor], seed: int) -> dict[str, Tensor]:
        """By name what stays of each, (count,) uint8; `weight` gives a layer's (out, in)."""
        raise NotImplementedError(f"{type(self).__name__} cuts off nothing before training")

    def foresee(self, units: list[Units]) -> dict[str, Tensor]:
        """As many units as `choose` keeps of each, without looking at any weight."""
        raise NotImplementedError(f"{type(self).__name__} cuts off nothing before training")

    def weights(self) -> Mapping[str, Tensor] | None:
        """Weights that the smaller model begins with in the place of its own, by parameter; None for its own."""
        return None


def leading(units: Units, count: int) -> Tensor:
    """The first `count` units stay."""
    return (torch.arange(units.count) < count).to(torch.uint8)


def remaining(count: int, ratio: float) -> int:
    """How many of `count` units stay where a share of them goes: int(count ratio) go, and one stays at the least."""
    return max(1, count - int(count * ratio + 1e-9))


def prunable(units: Sequence[Units], first: int | float, last: int) -> list[Units]:
    """The units of the layers that are neither among the first, so many or a share of all, nor the last.

    Raises:
        RecipeError: no layer is left.
    """
    layers = 1 + max((one.depth for one in units), default=-1)
    begin = int(layers * first + 1e-9) if isinstance(first, float) else first
    end = layers - last
    found = [one for one in units if begin <= one.depth < end]
    if not found:
        raise RecipeError(
            f"keeps the first {begin} and the last {last} of {layers} layers whole, so nothing is pruned; keep fewer",
            "prune",
        )
    return found


def spread(stays: Tensor, width: int) -> Tensor:
    """(count,) of units -> (count width,) of their rows or columns."""
    return stays.repeat_interleave(width)


def recovered(tensor: Tensor, stays: Tensor, dim: int) -> Tensor:
    """A tensor of the units that stayed, with zeros where the others were along `dim`."""
    kept = int(stays.sum())
    width = tensor.shape[dim] // kept
    shape = list(tensor.shape)
    shape[dim] = len(stays) * width
    places = spread(stays, width).nonzero().flatten().to(tensor.device)
    return tensor.new_zeros(shape).index_copy_(dim, places, tensor)
