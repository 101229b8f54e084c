"""A recipe's schedule on an optimizer: a factor on each group's own rate, never one value for all groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lrft.core.schedule import Schedule
from lrft.recipe.inside_sections import Extension
from lrft.recipe.schema import Recipe
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
        self.refresh()

    def refresh(self) -> None:
        """Set the rates of the coming step: those of a checkpoint are of the run as long as it then was."""
        for group, base, scale in zip(
            self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True
        ):
            group["lr"] = base * scale(self.last_epoch)

    def rate(self, step: int) -> float:
        """The first group's rate for the step that begins after `step` finished ones."""
        return float(self.base_lrs[0]) * self.lr_lambdas[0](step)

    def _rewarmed(self, step: int) -> float:
        since = step - self.restarted_at
        return (since + 1) / (self.rewarmup + 1) if since < self.rewarmup else 1.0


def build(
    optimizer: Optimizer, config: ScheduleConfig, total_steps: int, extended: Sequence[Extension] = ()
) -> Restartable:
    """The schedule of a recipe, multiplying each group's learning rate.

    Args:
        total_steps: of the run as it was planned, without the steps that were added to it.
    """
    schedule: Schedule = SCHEDULES.get(config.method)(config)
    ends = ends_of(total_steps, extended)
    rates = ["stretched", *(extension.rate for extension in extended)]

    def factor(step: float) -> float:
        part = min(bisect_right(ends, step), len(extended))
        while rates[part] == "held":  # at what the last step before had
            part, step = part - 1, ends[part - 1] - 1
        if rates[part] == "again":
            return schedule.factor(step - ends[part - 1], ends[part] - ends[part - 1])
        return schedule.factor(step, ends[part])

    return Restartable(optimizer, factor)


def ends_of(total_steps: int, extended: Sequence[Extension]) -> list[int]:
    """The steps after which a run was to end: as planned, then as it was extended; the last is its length."""
    return list(accumulate((extension.steps for extension in extended), initial=total_steps))


def tell(rate: Callable[[int], float], recipe: Recipe, ends: Sequence[int]) -> str:
    """One sentence on the rate in the steps that were added last.

    Args:
        rate: of the step that begins after so many finished ones.
        ends: what `ends_of` gave.
    """
    (*_, end, total), how = ends, recipe.train.extended[-1].rate
    method = recipe.schedule.method
    what = {
        "stretched": f"that of schedule {method} over {total} steps",
        "again": f"that of schedule {method} once more, over {total - end} steps",
        "held": "the last one",
    }[how]
    return (
        f"extended from {end} to {total} steps, in which the rate is {what} ({how}): {rate(end - 1):.3g} at step "
        f"{end}, {rate(end):.3g} at step {end + 1}, {rate(total - 1):.3g} at step {total}"
    )
