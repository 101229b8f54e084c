"""`Term`: a frozen map and the low-rank term beside it, as the node of several of them takes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from lrft.ops.formed import Formed, FrozenMap

Norms = Callable[[Tensor, bool], Tensor]
"""(W (out, in), whether it has that precision and was not widened to it) -> (out,) float32, without a graph."""


@dataclass(frozen=True)
class Gain:
    """g = `magnitude` (out,) float32, or that over `norms` of W, which are held constant in the backward pass."""

    magnitude: Tensor
    norms: Norms | None = None


@dataclass(frozen=True)
class Term:
    """One of the maps, and the low-rank term beside it.

    Attributes:
        base: the frozen map; None for the term alone, which then is the only one and has no gain.
        scale: of the term.
    """

    base: FrozenMap | None
    parts: Formed
    scale: float
    gain: Gain | None = None

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """What the node gives gradients to."""
        return self.parts.trained if self.gain is None else (self.gain.magnitude, *self.parts.trained)

    @property
    def saved(self) -> int:
        """How many tensors of its gain are kept for the backward pass."""
        return 0 if self.gain is None else 2 if self.gain.norms is None else 3

    def wants_up(self, from_y: bool) -> bool:
        """Whether the gradient of `up` is computed: also for a gain, unless its own is found `from_y`."""
        return self.parts.trains_up or (self.gain is not None and not from_y)


def owned(terms: Sequence[Term], trained: Sequence[Tensor]) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
    """The magnitude of each, and what its factors are made of."""
    left = iter(trained)
    for one in terms:
        magnitude = None if one.gain is None else next(left)
        yield magnitude, [next(left) for _ in one.parts.trained]
