"""A selector of a stranger: in every other step one half of the parameters rests."""

from __future__ import annotations

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, MethodConfig


@SELECTORS.register
class EveryOther(TimedMethod):
    """Halves of the parameters that take turns.

        parameter i trains in step t where (i + t // `every`) is even

    Trains: what the adapter trains, half of it at a time.
    Source: none, an example.
    Departures: none.
    """

    requires = {"first_order"}

    class Config(MethodConfig):
        every: int = Field(1, gt=0)

    def after_backward(self, run: Run) -> None:
        turn = run.step // self.config.every
        for index, info in enumerate(run.parameters):
            if (index + turn) % 2:
                info.param.grad = None
