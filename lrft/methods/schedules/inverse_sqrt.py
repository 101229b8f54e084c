"""Inverse square root: a fall without an end."""

from __future__ import annotations

import math

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import Field, ScheduleConfig


@SCHEDULES.register
class InverseSqrt(Schedule):
    """A fall with the inverse square root of the step, which does not depend on the length of the run.

        f(t) = max(floor, sqrt(k / (k + t)))

    with t the steps since the warm-up and k = `timescale`, by default the steps of the warm-up, at least 1: with the
    rate lr this is then lr sqrt(w / step), as published. The warm-up, `warmup_steps` or `warmup_ratio`, is that of
    `linear`; `floor` bounds f from below.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, equation 3, scaled to 1 at its highest.
    Departures: `timescale` and `floor` are additions.
    """

    aliases = {
        "noam rsqrt inverse_square_root": "schedule: {method: inverse_sqrt, warmup_ratio: 0.03}",
    }

    class Config(ScheduleConfig):
        timescale: int | None = Field(
            None,
            gt=0,
            description="steps in which the rate falls to 0.71; by default the steps of the warm-up",
        )

    config: Config

    def factor(self, step: float, total: int) -> float:
        warmup = self.config.warmup(total)
        if step < warmup:
            return super().factor(step, total)
        k = self.config.timescale or max(1, warmup)
        return max(self.config.floor, math.sqrt(k / (k + step - warmup)))
