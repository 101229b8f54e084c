"""`Schedule`: the learning rate over the steps, as a factor on each group's own rate."""

from __future__ import annotations

from typing import ClassVar

from lrft.registry.config import ScheduleConfig


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
