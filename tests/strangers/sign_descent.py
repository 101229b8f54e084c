"""An optimizer of a stranger: steps of one size against the sign of an average gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lrft.core.optimizer import Optimizer
from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


@OPTIMIZERS.register
class SignDescent(Optimizer):
    """Descent along the sign of momentum.

        m <- `momentum` m + (1 - `momentum`) g,  p <- p - lr sign(m)

    State: 4 bytes a parameter (m in float32).
    Source: none, an example.
    Departures: none.
    """

    provides = {"clippable", "first_order", "per_parameter"}
    requires = {"backward"}

    class Config(OptimizerConfig):
        lr: float = Field(1e-3, gt=0)
        momentum: float = Field(0.9, ge=0, lt=1)

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:
        return cls([info.param for info in params], {"lr": config.lr, "momentum": config.momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    mean = state.setdefault("mean", torch.zeros_like(param))
                    mean.lerp_(param.grad, 1 - group["momentum"])
                    param.add_(mean.sign(), alpha=-group["lr"])
        return None
