"""`Objective`: a loss, and what it needs from the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from lrft.core.batch import Batch
from lrft.registry.config import MethodConfig

if TYPE_CHECKING:
    from lrft.core.run import LanguageModel, Run


Passes = Callable[[], Iterator[tuple[Batch, bool]]]


class StepTotals(Protocol):
    """Counts of a whole optimizer step, over all micro-batches and processes."""

    @property
    def targets(self) -> int:
        """Target tokens."""

    @property
    def examples(self) -> int:
        """Rows of the data."""

    @property
    def micro_batch_count(self) -> int:
        """Micro-batches."""


class Objective:
    """A loss over one micro-batch, summed over its target tokens, or over whatever `divisor` counts.

    One that is a `Callback` as well hears of the steps, before they are scored and saved, and keeps what must survive
    a resume.

    The loop divides by the `divisor` of the whole step, so accumulation, packing and several processes give the
    loss of one big batch. A loss whose rows are compared with one another finds the others in `whole_step`.

    Attributes:
        teacher: the model that `teacher_name` names, frozen and in evaluation mode, set before the first loss. It reads
            the same batches, and predicts the same tokens.
        replies: the first tokens of the replies to whether an answer is right, no and yes; set before the first loss of
            an objective that provides `replies`.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: MethodConfig
    teacher: LanguageModel | None = None
    replies: tuple[int, int] | None = None

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    def teacher_name(self) -> str | None:
        """The other model that the loss compares with, a setting marked `MODEL_OR_RUN`; None where there is none."""
        return None

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss, a float32 scalar with a graph.

        Args:
            run: the training; None in calibration, where nothing may depend on how far it is.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no loss")

    def whole_step(self, run: Run, totals: StepTotals, passes: Passes) -> None:
        """Hear of a step before the loss of its first micro-batch; the losses then follow in the order of `passes`.

        Every process comes here, also one without a micro-batch, and as often as the loss of the step is taken.

        Args:
            passes: makes the micro-batches of this process one after the other, each on its device, with the draws
                that its loss will have, and whether it is one of the step's: one that is not is there to go in step
                with other processes. What is computed of them then counts nowhere.
        """

    def divisor(self, batches: StepTotals) -> int:
        """What the summed loss of a whole step is divided by: its target tokens, unless the loss is per row."""
        return batches.targets
