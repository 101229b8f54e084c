"""A schedule of a stranger: the rate goes down in stairs."""

from __future__ import annotations

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import Field, ScheduleConfig


@SCHEDULES.register
class Staircase(Schedule):
    """The full rate, halved at every stair.

        f(t) = 2^-floor(`stairs` t / T)

    Shapes: f is one number a step.
    Source: none, an example.
    Departures: none.
    """

    config: Config

    class Config(ScheduleConfig):
        stairs: int = Field(3, gt=0)

    def after(self, step: float, length: int) -> float:
        return float(2.0 ** -int(self.config.stairs * step / length))
