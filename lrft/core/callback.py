"""`Callback`: whatever changes or watches a run over time. Five events, and no sixth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lrft.registry.config import MethodConfig

if TYPE_CHECKING:
    from lrft.core.run import Run

EVENTS = ("start", "before_step", "after_backward", "after_step", "finish")


class Callback:
    """Override the events you need; keep what must survive a resume in `state_dict`."""

    def start(self, run: Run) -> None:
        """Before the first step of this process; on a resume, after the state was loaded."""

    def before_step(self, run: Run) -> None:
        """`run.step` counts the finished steps: the draws for the step that begins."""

    def after_backward(self, run: Run) -> None:
        """Gradients are complete and unclipped, parameters have not moved."""

    def after_step(self, run: Run) -> None:
        """Parameters moved, gradients are still present, `run.step` counts the step just finished."""

    def finish(self, run: Run) -> None:
        """After the last step."""

    def close(self) -> None:
        """Give back terminals, signals and sessions, however the run ended. Not an event: nothing is trained here."""

    def gradients_by(self, run: Run) -> int:
        """The step by which every trainable tensor has had a gradient that is not zero.

        Two at the least: a factor that multiplies a zero factor has none in the first.
        """
        return 2

    def state_dict(self) -> Mapping[str, object]:
        """Plain JSON values and tensors; empty when there is nothing to keep.

        Asked before `start` too: what is saved is compared with it before it is taken back.
        """
        return {}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        """What `state_dict` has once steps were taken and does not have before, in tensors of the same shape and dtype.

        What is saved is compared with it too. Tensors of the meta device will do.
        """
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Take back what `state_dict` gave."""


class TimedMethod(Callback):
    """A callback that is a method of a recipe's axis: a dynamic allocator, a restart, a selection of what trains.

    It acts before the callbacks that score, log and save, so what they see of a step is what it left.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config
