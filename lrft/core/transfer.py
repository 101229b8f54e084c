"""`TransferEstimate`: how much a model that was trained on a source task first may gain on a target task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from lrft.core.data_selection import Need
from lrft.registry.config import MethodConfig


class TransferEstimate:
    """Scores a source task for a target task, without training on the target. The higher the score the better.

    Attributes of the class:
        need: what is measured of every row.
        looks_at: `rows`, the source's training rows and the target's, both by the target's base; or `answers`, the
            target's questions alone, by a model that was trained on the source, and the class of each answer.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    need: ClassVar[Need] = "embeddings"
    dimensions: ClassVar[int] = 0
    looks_at: ClassVar[Literal["rows", "answers"]] = "rows"
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def of_rows(self, source: Tensor, target: Tensor) -> float:
        """The score by what rows are about: (source rows, d), (target rows, d)."""
        raise NotImplementedError(f"{type(self).__name__} declares no of_rows")

    def of_answers(self, features: Tensor, classes: Tensor) -> float:
        """The score by what a source's model knows of the answers: (target rows, d), (target rows,) from 0 on."""
        raise NotImplementedError(f"{type(self).__name__} declares no of_answers")
