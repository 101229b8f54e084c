"""`DataSelection`: which rows of a pool are to be trained on, given what was measured of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from lrft.registry.config import MethodConfig

Need = Literal["losses", "embeddings", "states", "gradients"]


class Asks(Protocol):
    """What says of itself what has to be measured of rows, as `DataSelection` does."""

    @property
    def need(self) -> Need | None:
        """What of every row; None for nothing that takes a model."""

    @property
    def dimensions(self) -> int:
        """Of what gradients are projected to."""


@dataclass(frozen=True)
class Measured:
    """Rows as a selection sees them, all in one order.

    Attributes:
        learnt: how many tokens of each row are learnt.
        features: what was measured of each, (rows, numbers) in float32: one loss a row, or an embedding or gradient;
            None where nothing was asked for.
        where: names a row in a reason.
    """

    learnt: Sequence[int]
    features: Tensor | None = None
    where: Callable[[int], str] = "row {}".format

    def __len__(self) -> int:
        return len(self.learnt)


@dataclass(frozen=True)
class Chosen:
    """A row of the pool, and why it was chosen; the higher the score the better, by whatever is scored."""

    row: int
    score: float
    reason: str


@dataclass(frozen=True)
class Selection:
    """The rows that were chosen, best first, and what else somebody should know."""

    chosen: list[Chosen]
    notes: tuple[str, ...] = ()


class DataSelection:
    """Chooses rows of a pool: a function of what was measured, the budget and the seed.

    Rows of one score are taken in the order of the pool.

    Attributes of the class, or of an instance:
        need: what is measured of every row before; None for nothing that takes a model.
        targeted: compares the pool with rows that it is to serve.
        counts: it says itself how many rows there are to be, and is given no budget.
        dimensions: of what gradients are projected to.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    need: ClassVar[Need | None] = None
    targeted: ClassVar[bool] = False
    counts: bool = False
    dimensions: int = 0
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        """The rows that are to be trained on.

        Args:
            target: the rows that it is to serve, measured likewise; None where it is not `targeted`.
            budget: how many; no more than the pool has, and all of them where it `counts` itself.

        Raises:
            DataError: what was measured is of no use.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no choose")


def best(scores: Sequence[float], budget: int, reason: Callable[[int], str]) -> list[Chosen]:
    """The rows of the highest scores, equal ones in their order."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    return [Chosen(row, float(scores[row]), reason(row)) for row in order[:budget]]
