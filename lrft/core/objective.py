"""`Objective`: a loss, and what it needs from the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.config import MethodConfig

if TYPE_CHECKING:
    from lrft.core.run import LanguageModel, Run


class Objective:
    """A loss over one micro-batch, summed over its target tokens.

    The loop divides by the target tokens of the whole step, so accumulation, packing and several processes
    give the loss of one big batch.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed token loss, a float32 scalar with a graph."""
        raise NotImplementedError(f"{type(self).__name__} declares no loss")
