"""Linear: the rate falls along a straight line."""

from __future__ import annotations

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import ScheduleConfig


@SCHEDULES.register
class Linear(Schedule):
    """A linear fall from the full rate to its floor.

        f(t) = floor + (1 - floor) (1 - t / T)

    with t the steps since the warm-up and T = steps of the run - warm-up, `floor` the share of the rate that is left at
    the end. During a warm-up of w steps, `warmup_steps` or `warmup_ratio` of the run, f = (step + 1) / (w + 1).

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: the default of most fine-tuning codes; Goyal et al., 2017, arXiv 1706.02677, for the warm-up.
    Departures: the first step of a warm-up has the rate 1 / (w + 1) where transformers has 0.
    """

    aliases = {
        "linear_with_warmup warmup_linear": "schedule: {method: linear, warmup_ratio: 0.03}",
    }

    config: Config

    class Config(ScheduleConfig):
        pass

    def after(self, step: float, length: int) -> float:
        floor = self.config.floor
        return floor + (1.0 - floor) * (1.0 - min(1.0, step / length))
