"""The range test of a learning rate: every step at a higher one, by the same factor, until the loss blows up."""

from __future__ import annotations

import math
from collections.abc import Callable

from lrft.core import stop
from lrft.core.callback import Callback
from lrft.core.run import Run

KEEP = 0.8  # of the running mean of the loss, a step
TWICE = 2.0  # times the lowest mean: a loss that has blown up
FALL = 0.9  # of the first mean: a loss that has fallen, and may be seen to lose that again


class SweepOver(Exception):
    """The last rate was reached, or the loss has blown up: nothing is to be finished or saved."""


class RateSweep(Callback):
    """Sets the rate of every step and keeps its loss; stands last, so that nobody changes the rate after it.

    Step k of n trains at low (high / low)^((k - 1) / (n - 1)). Parameters with a rate of their own keep its ratio.

    Attributes:
        rates, losses: of the steps finished.
        blown: whether the loss has blown up: it is no finite number, its running mean is above twice its lowest, or
            back at its first value after it had fallen by a tenth.
    """

    def __init__(
        self, low: float, high: float, steps: int, own: float, progress: Callable[[str, int, int], None]
    ) -> None:
        self.low, self.high, self.steps, self.own, self.progress = low, high, steps, own, progress
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.blown = False
        self.sum, self.weight = 0.0, 0.0
        self.first, self.lowest = math.inf, math.inf

    def rate(self, step: int) -> float:
        """The rate of the step that begins after `step` finished ones."""
        return float(self.low * (self.high / self.low) ** (step / (self.steps - 1)))

    def start(self, run: Run) -> None:
        self.progress("rates", 0, self.steps)

    def before_step(self, run: Run) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] / self.own * self.rate(run.step)

    def after_step(self, run: Run) -> None:
        self.rates.append(self.rate(run.step - 1))
        self.losses.append(run.metrics["loss"])
        self.progress("rates", run.step, self.steps)
        stop.poll()
        self.blown = self._blows_up(run.metrics["loss"])
        if self.blown or run.step == self.steps:
            raise SweepOver

    def _blows_up(self, loss: float) -> bool:
        self.sum = KEEP * self.sum + (1 - KEEP) * loss
        self.weight = KEEP * self.weight + (1 - KEEP)
        mean = self.sum / self.weight
        if not self.rates[1:]:
            self.first = mean
        self.lowest = min(self.lowest, mean)
        fell = self.lowest < FALL * self.first
        return not math.isfinite(mean) or mean > TWICE * self.lowest or (fell and mean >= self.first)
