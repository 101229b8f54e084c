"""A recipe's schedule on an optimizer: a factor on each group's own rate, never one value for all groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import ScheduleConfig


class Restartable(LambdaLR):
    """A schedule whose warm-up can be repeated: from a restart on, the factor rises from 0 to what it would be."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[float], float]) -> None:
        self.restarted_at = 0
        self.rewarmup = 0  # steps; 0 where nothing was restarted
        self.begins: list[int] = []
        super().__init__(optimizer, lambda step: factor(self._within(step)) * self._rewarmed(step))

    def repeat(self, begins: list[int]) -> None:
        """Run through the whole schedule, warm-up included, between each of these steps and the next.

        Args:
            begins: rising, from 0 to the run's length.
        """
        self.begins = list(begins)

    def _within(self, step: int) -> float:
        if not self.begins:
            return step
        part = min(bisect_right(self.begins, step), len(self.begins) - 1) - 1
        begin, end = self.begins[part : part + 2]
        return (step - begin) * self.begins[-1] / (end - begin)

    def restart(self, warmup: int) -> None:
        """Fall to 1 / (warmup + 1) of the rate for the coming step, and be back within `warmup` steps."""
        self.restarted_at, self.rewarmup = self.last_epoch, warmup
        for group, base, scale in zip(
            self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True
        ):
            group["lr"] = base * scale(self.last_epoch)

    def _rewarmed(self, step: int) -> float:
        since = step - self.restarted_at
        return (since + 1) / (self.rewarmup + 1) if since < self.rewarmup else 1.0


def build(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> Restartable:
    """The schedule of a recipe, multiplying each group's learning rate."""
    schedule: Schedule = SCHEDULES.get(config.method)(config)
    return Restartable(optimizer, lambda step: schedule.factor(step, total_steps))
