"""Cosine: the rate falls along half a period."""

from __future__ import annotations

import math

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import ScheduleConfig


@SCHEDULES.register
class Cosine(Schedule):
    """A fall along half a period of a cosine from the full rate to its floor.

        f(t) = floor + (1 - floor) (1 + cos(pi t / T)) / 2

    with t the steps since the warm-up and T = steps of the run - warm-up, `floor` the share of the rate that is left at
    the end. The warm-up, `warmup_steps` or `warmup_ratio`, is that of `linear`.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv 1608.03983, without its restarts (`cosine_restarts`).
    Departures: none.
    """

    aliases = {
        "cosine_with_min_lr cosine_warmup_with_min_lr cosine_with_floor": "schedule: {method: cosine, floor: 0.1}",
        "cosine_with_warmup warmup_cosine cosine_annealing": "schedule: {method: cosine, warmup_ratio: 0.03}",
    }

    config: Config

    class Config(ScheduleConfig):
        pass

    def after(self, step: float, length: int) -> float:
        floor, progress = self.config.floor, min(1.0, step / length)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
