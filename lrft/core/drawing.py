"""`Drawing`: an objective of answers that the model itself draws while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.objective import Objective
from lrft.core.reward import Reward
from lrft.core.run import LanguageModel
from lrft.registry.config import DrawingConfig


class Drawing(Objective):
    """Its steps draw `group` answers to the prompt of every row, reward them, and ask it to judge them.

    A micro-batch then holds `group` documents a row, one after the other, and what was judged in `Batch.sampled`.
    Where there is none, as in calibration, the documents are the rows' own answers.
    """

    provides: ClassVar[set[str]] = {"backward", "draws"}
    Config: ClassVar[type[DrawingConfig]] = DrawingConfig

    config: DrawingConfig

    def rewards(self) -> Sequence[Reward]:
        """What an answer is given, each to be multiplied by its weight and added."""
        raise NotImplementedError(f"{type(self).__name__} declares no rewards")

    def judge(self, model: LanguageModel, batch: Batch, rewards: Tensor) -> Sampled:
        """What is learnt of answers that were just drawn; without gradients, in evaluation mode.

        Args:
            rewards: (rows, `group`) float64 on the host, of the batch's documents in order.
        """
        raise NotImplementedError(f"{type(self).__name__} judges no answers")
