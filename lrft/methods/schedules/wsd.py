"""WSD: a long stretch at the full rate, then a short fall."""

from __future__ import annotations

import math

from lrft.core.schedule import Schedule
from lrft.registry.axes import SCHEDULES
from lrft.registry.config import Field, Literal, ScheduleConfig


@SCHEDULES.register
class WSD(Schedule):
    """Warm-up, stable, decay: the full rate until the last part of the run, which falls to the floor.

        f(t) = 1                                          while t <= T - D
        f(t) = floor + (1 - floor) g((t - (T - D)) / D)    from there to T

    with t the steps since the warm-up, T = steps of the run - warm-up, D = `decay` T, and g(u) by `shape`: 1 - u
    (`linear`), (1 + cos(pi u)) / 2 (`cosine`), 1 - sqrt(u) (`sqrt`). The warm-up, `warmup_steps` or `warmup_ratio`, is
    that of `linear`.

    Shapes: f is one number a step; every group's own rate is multiplied by it.
    State: none; f is a function of the step.
    Source: Hu et al., "MiniCPM", 2024, arXiv 2404.06395; `sqrt` and the share of a fifth: Haegele et al., "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations", NeurIPS 2024, arXiv 2405.18392.
    Departures: MiniCPM falls exponentially to a tenth; write `floor: 0.1` for that end.
    Advice: checkpoints of the stable part can be trained on for longer, since nothing has fallen yet.
    """

    aliases = {
        "warmup_stable_decay trapezoidal": "schedule: wsd",
    }

    class Config(ScheduleConfig):
        decay: float = Field(
            0.2, gt=0, le=1, description="share of the steps after the warm-up in which it falls"
        )
        shape: Literal["linear", "cosine", "sqrt"] = "sqrt"

    config: Config

    def after(self, step: float, length: int) -> float:
        config = self.config
        fall = config.decay * length
        u = min(1.0, max(0.0, (step - (length - fall)) / fall))
        left = {"linear": 1 - u, "cosine": 0.5 * (1 + math.cos(math.pi * u)), "sqrt": 1 - math.sqrt(u)}
        return config.floor + (1.0 - config.floor) * left[config.shape]
