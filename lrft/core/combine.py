"""`Combination`: how the changes that several adapters make of one base become one change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.registry.config import MethodConfig
from lrft.registry.errors import UsageError

EXACT = 1e-6  # of the largest singular value: what float32 leaves of those that are zero


@dataclass(frozen=True)
class Part:
    """What one parent changes at one layer: scale * B A, or `dense` (out, in) where that is of no low rank.

    A parent that changes nothing there has A (0, in) and B (out, 0). All in float32.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0
    dense: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of A; of a dense change the most it can have, and 0 where nothing changes."""
        return self.A.shape[0] if self.dense is None else min(self.dense.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    def change(self) -> Tensor:
        """The change, (out, in)."""
        return self.scale * (self.B @ self.A) if self.dense is None else self.dense

    def factors(self) -> Factors:
        """A (r, in) and B (out, r) of the change, its scale in both alike; of a dense one by an SVD, all of it."""
        if self.dense is None:
            root = abs(self.scale) ** 0.5
            return (root if self.scale >= 0 else -root) * self.A, root * self.B
        U, S, Vh = torch.linalg.svd(self.dense, full_matrices=False)
        kept = max(int((EXACT * S[0] < S).sum()), 1)
        root_S = S[:kept].sqrt()
        return root_S[:, None] * Vh[:kept], U[:, :kept] * root_S


Parts = Sequence[Part]
"""At one layer, one of every parent, in the order that they were given in."""


class Combination:
    """One way of combining.

    Class attributes:
        least, most: parents that it takes; None for any number.
        weighs: what weights are where none are given: `mean`, 1 / N each, or `sum`, 1 each; `none` takes none.

    Args:
        weights: one of every parent.
        seed: of what is drawn.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = None
    weighs: ClassVar[Literal["mean", "sum", "none"]] = "mean"
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`

    def __init__(self, config: MethodConfig, weights: Sequence[float], seed: int = 0) -> None:
        self.config, self.weights, self.seed = config, list(weights), seed

    @classmethod
    def own_weights(cls, count: int) -> list[float]:
        """The weights of so many parents where none are given."""
        return [1 / count if cls.weighs == "mean" else 1.0] * count

    def look(self, sites: Mapping[str, Parts]) -> None:
        """See all layers before any is combined, for what goes by the whole model."""

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        """The change of one layer: A (k, in) and B (out, k), or (out, in), float32.

        Raises:
            UsageError: it cannot be made of these, with what can.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no combine")

    def rank(self, parts: Parts) -> int | None:
        """The rank that the result is cut to where nobody asks for another; None keeps what there is."""
        return None

    def found(self) -> dict[str, float]:
        """What it found that a reader of the certificate may want to know, by layer or by name."""
        return {}


def together(parts: Parts, weights: Sequence[float]) -> Factors:
    """Factors of sum w_t delta_t, exactly: rows of A and columns of B one parent after the other."""
    pairs = [part.factors() for part in parts]
    A = torch.cat([weight * A for weight, (A, _) in zip(weights, pairs, strict=True)])
    return A, torch.cat([B for _, B in pairs], dim=1)


def check_equal_ranks(site: str, parts: Parts, name: str) -> list[int]:
    """Places of the parents that change `site`, which have factors of one rank.

    Raises:
        UsageError: they have not.
    """
    there = [place for place, part in enumerate(parts) if part.rank]
    ranks = {parts[place].rank for place in there}
    if len(ranks) > 1 or any(parts[place].dense is not None for place in there):
        shown = ", ".join(map(str, sorted(ranks)))
        raise UsageError(
            f"--method {name}: adds up factors one by one, so at {site} all parents need factors of one rank (they "
            f"have {shown}); name a method that adds up changes, cat or svd"
        )
    return there
