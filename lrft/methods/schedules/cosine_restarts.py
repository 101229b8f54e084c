"""Cosine with warm restarts: the rate jumps back to its height, again and again."""

from __future__ import annotations

import math

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import Field, ScheduleConfig, Sequence
from lrft.registry.errors import RecipeError


@SCHEDULES.register
class CosineRestarts(Schedule):
    """Falls along half a cosine, each begun again at the full rate (or at a share of the one before).

        f(t) = peak_i (floor + (1 - floor) (1 + cos(pi u)) / 2),  peak_i = `shrink`^i

    with t the steps since the warm-up, u how far t is through cycle i, and cycles of lengths l, m l, m^2 l, ...: there
    are `cycles` of them, m = `stretch`, and l is such that the last ends with the run. The warm-up, `warmup_steps` or
    `warmup_ratio`, is that of `linear`.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv 1608.03983.
    Departures: the number of cycles is set, not the length of the first; `shrink` is an addition, 1 as published.
    Advice: the rate is restarted here and nothing else; `restart` is the axis that also folds adapters.
    """

    aliases = {
        "cosine_with_restarts cosine_hard_restarts cosine_annealing_warm_restarts sgdr": "schedule: cosine_restarts",
    }

    class Config(ScheduleConfig):
        cycles: int = Field(4, gt=0, description="falls from the full rate within the run")
        stretch: float = Field(1.0, ge=1, description="length of a cycle over that of the one before")
        shrink: float = Field(1.0, gt=0, le=1, description="height of a cycle over that of the one before")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse cycles without a step."""
            super().check_length(total_steps)
            left = total_steps - self.warmup(total_steps)
            if self.cycles > max(left, 1):
                message = f"{self.cycles} cycles are more than the {left} steps after the warm-up; use at most {left}"
                raise RecipeError(message, "schedule.cycles")

    config: Config

    def after(self, step: float, length: int) -> float:
        config = self.config
        ends = [sum(config.stretch**j for j in range(i + 1)) for i in range(config.cycles)]
        bounds = [0.0, *(length * end / ends[-1] for end in ends)]
        cycle = max(i for i in range(config.cycles) if i == 0 or step >= bounds[i])
        u = min(1.0, (step - bounds[cycle]) / (bounds[cycle + 1] - bounds[cycle]))
        fall = config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * u))
        return float(config.shrink**cycle * fall)
