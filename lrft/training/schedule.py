"""Learning-rate schedules: a factor on each group's own rate, never one value for all groups."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_steps(section: Any, total_steps: int) -> int:
    """Steps of warm-up that a recipe's `schedule` section means."""
    if section.warmup_steps is not None:
        return int(section.warmup_steps)
    return math.ceil(section.warmup_ratio * total_steps)


def factor(method: str, step: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The factor on the learning rate for the step that begins after `step` finished ones.

    Warm-up gives (step + 1) / (warmup + 1), so that the first step already moves (transformers starts at 0, which
    wastes it). Then: linear falls to `floor`, cosine falls along half a period to `floor`, constant stays 1.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if method == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if method == "linear":
        return floor + (1.0 - floor) * (1.0 - progress)
    if method == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {method!r}")


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


def build(optimizer: Optimizer, section: Any, total_steps: int) -> Restartable:
    """The schedule of a recipe, multiplying each group's learning rate."""
    warmup = warmup_steps(section, total_steps)
    floor = section.floor
    return Restartable(optimizer, lambda step: factor(section.method, step, warmup, total_steps, floor))
