"""Constant: one rate from the warm-up to the end."""

from __future__ import annotations

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import ScheduleConfig


@SCHEDULES.register
class Constant(Schedule):
    """The full rate from the end of the warm-up on.

        f(t) = 1

    The warm-up, `warmup_steps` or `warmup_ratio`, is that of `linear`; `floor` means nothing here.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none.
    Source: standard.
    Departures: none.
    """

    aliases = {
        "constant_with_warmup warmup_constant": "schedule: {method: constant, warmup_ratio: 0.03}",
        "none off fixed": "schedule: constant",
    }

    config: Config

    class Config(ScheduleConfig):
        pass

    def after(self, step: float, length: int) -> float:
        return 1.0
