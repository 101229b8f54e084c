"""`Schedule`: the learning rate over the steps, as a factor on each group's own rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from lrft.registry.config import ScheduleConfig

if TYPE_CHECKING:
    from torch.optim.optimizer import StateDict


class Schedule:
    """What the rate is multiplied by for the step that begins after `step` finished ones.

    A subclass says `after`, what follows the warm-up; one whose rise is its own overrides `factor`. The factor is a
    function of the settings and of (step, total) alone, so nothing of it is saved.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[ScheduleConfig]] = ScheduleConfig
    config: ScheduleConfig

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config

    def factor(self, step: float, total: int) -> float:
        """The factor in a run of `total` steps; `step` is no whole number where a restart runs the schedule faster.

        Warm-up gives (step + 1) / (warmup + 1), so that the first step already moves (transformers starts at 0, which
        wastes it).
        """
        warmup = self.config.warmup(total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after(step - warmup, max(1, total - warmup))

    def after(self, step: float, length: int) -> float:
        """The factor `step` steps after the warm-up, of the `length` steps that follow it."""
        raise NotImplementedError(f"{type(self).__name__} declares no factor")


class Stepped(Protocol):
    """A schedule on the groups of an optimizer, stepped once per optimizer step."""

    def step(self) -> None:
        """Move to the next step's rates."""

    def state_dict(self) -> StateDict:
        """Plain values."""

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take them back."""

    def restart(self, warmup: int) -> None:
        """Fall to zero now and rise within `warmup` steps to where the schedule then is."""

    def repeat(self, begins: list[int]) -> None:
        """Run through the whole schedule between each of these steps and the next."""

    def refresh(self) -> None:
        """Set the rates of the coming step."""

    def rate(self, step: int) -> float:
        """The first group's rate for the step that begins after `step` finished ones."""
