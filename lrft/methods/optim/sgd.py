"""SGD with momentum and decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig, model_validator


@OPTIMIZERS.register
class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum and decoupled weight decay.

        p <- (1 - lr wd) p
        v <- mu v + g,  v = g at the first step
        p <- p - lr v,  or with `nesterov: true`  p <- p - lr (g + mu v)

    with g the gradient of the parameter p; lr = `lr`, wd = `weight_decay`, mu = `momentum`.

    Shapes: v as p.
    State: 1 number per parameter, 4 bytes; none with `momentum: 0`.
    Source: Sutskever et al., ICML 2013, as in torch.optim.SGD; decay: Loshchilov and Hutter, ICLR 2019, SGDW.
    Departures: weight decay does not pass through the momentum, so that it means the same in every optimizer here;
    without momentum that changes nothing.
    """

    aliases = {
        "torch.optim.sgd sgd_momentum momentum": "optimizer: sgd",
    }
    provides = {"clippable", "first_order", "per_parameter", "entry_moments"}
    requires = {"backward"}

    class Config(OptimizerConfig):
        momentum: float = Field(0.9, ge=0, lt=1)
        nesterov: bool = False

        @model_validator(mode="after")
        def _nesterov_has_momentum(self) -> Self:
            if self.nesterov and self.momentum == 0:
                raise ValueError("nesterov needs a momentum above 0")
            return self

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:
        group = {"params": [info.param for info in params], "decoupled_decay": config.weight_decay}
        return cls([group], lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=False)

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        return info.param.nbytes if config.momentum else 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Decay, then torch's step."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.mul_(1 - group["lr"] * group["decoupled_decay"])
        super().step()
        return loss
