"""One cycle: up to the full rate and down to next to nothing."""

from __future__ import annotations

import math

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import Field, Iterator, Problem, RecipeView, ScheduleConfig


@SCHEDULES.register
class OneCycle(Schedule):
    """One rise to the full rate and one fall to a rate far below where it began, both along half a cosine.

        f(t) = s + (1 - s) (1 - cos(pi t / R)) / 2              for t <= R
        f(t) = e + (1 - e) (1 + cos(pi (t - R) / (T - R))) / 2   from there to T

    with t the finished steps of T, R = `rise` T, s = `start` and e = `floor`, shares of the full rate. The rise is the
    warm-up, so `warmup_steps` and `warmup_ratio` stay as they are by default.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: Smith and Topin, "Super-Convergence", 2017, arXiv 1708.07120; shape and defaults of torch's OneCycleLR, with
    which it agrees at every step (`start` 1/25, `floor` 1/250000, `rise` 0.3 there).
    Departures: momentum is not cycled in the opposite direction; the optimizers here keep theirs.
    """

    aliases = {
        "one_cycle_lr super_convergence": "schedule: one_cycle",
    }

    class Config(ScheduleConfig):
        rise: float = Field(0.3, gt=0, lt=1, description="share of the run in which the rate rises")
        start: float = Field(0.04, ge=0, le=1, description="share of the rate that the run begins with")
        floor: float = Field(4e-6, ge=0, lt=1, description="share of the rate that the run ends with")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A second warm-up."""
            for key in ("warmup_steps", "warmup_ratio"):
                if getattr(self, key):
                    yield Problem(
                        f"schedule.{key}", "the rise of one_cycle is its warm-up; set schedule.rise instead"
                    )

    config: Config

    def factor(self, step: float, total: int) -> float:
        config, last = self.config, max(1, total - 1)
        top = max(config.rise * total - 1, 1e-9)
        if step <= top:
            return config.start + (1 - config.start) * 0.5 * (1 - math.cos(math.pi * step / top))
        u = min(1.0, (step - top) / max(last - top, 1e-9))
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * u))
