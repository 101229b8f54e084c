"""`Drawing`: an objective of answers that the model itself draws while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.objective import Objective
from lrft.core.reward import Reward
from lrft.core.run import LanguageModel
from lrft.registry.config import DrawingConfig


@dataclass(frozen=True)
class Lines:
    """Where the lines of drawn answers are, on the host, for the targets of a batch in order.

    Attributes:
        of_targets: (N,) int64, the line of its answer that a target stands on, from 0; a line break ends its line.
        stops: (N,) bool, whether a target ended its answer.
    """

    of_targets: Tensor
    stops: Tensor


@dataclass(frozen=True)
class Rewording:
    """What is asked about a row, in which `{NAME}` is its column NAME, and the column whose text an answer replaces."""

    template: str
    column: str


class Drawing(Objective):
    """Its steps draw `group` answers to the prompt of every row, reward them, and ask it to judge them.

    A micro-batch then holds `group` documents a row, one after the other, and what was judged in `Batch.sampled`.
    Where there is none, as in calibration, the documents are the rows' own answers.
    """

    provides: ClassVar[set[str]] = {"backward", "draws"}
    Config: ClassVar[type[DrawingConfig]] = DrawingConfig

    config: DrawingConfig

    @property
    def ranks(self) -> int:
        """How many lines of an answer are rewarded one by one; 0 where it is rewarded as a whole."""
        return 0

    @property
    def rewords(self) -> Rewording | None:
        """What is asked in the place of a row's prompt, where answers are judged in a row of their own by `worth`."""
        return None

    def worth(self, model: LanguageModel, batch: Batch) -> Tensor:
        """What answers are worth by the rows that they make, (documents,); without gradients, in evaluation mode."""
        raise NotImplementedError(f"{type(self).__name__} rewords nothing")

    def rewards(self) -> Sequence[Reward]:
        """What an answer is given, each to be multiplied by its weight and added."""
        raise NotImplementedError(f"{type(self).__name__} declares no rewards")

    def judge(
        self, model: LanguageModel, batch: Batch, rewards: Tensor, lines: Lines | None = None
    ) -> Sampled:
        """What is learnt of answers that were just drawn; without gradients, in evaluation mode.

        Args:
            rewards: (rows, `group`) float64 on the host, of the batch's documents in order; where there are `ranks`,
                (rows, `group`, `ranks`).
            lines: of the answers, where there are `ranks`.
        """
        raise NotImplementedError(f"{type(self).__name__} judges no answers")
