"""Lion: the sign of an interpolated momentum, with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.optimizer import ParamsT

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


@OPTIMIZERS.register
class Lion(Optimizer):
    """Evolved sign momentum: every number moves by the same amount, up or down.

        p <- (1 - lr wd) p
        p <- p - lr sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    with g the gradient of the parameter p; lr = `lr`, wd = `weight_decay`, b1 = `beta1`, b2 = `beta2`.

    Shapes: m as p, 0 before the first step, which is along sign(g).
    State: 1 number per parameter, 4 bytes, half of AdamW's.
    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv 2302.06675, Algorithm 2.
    Departures: none.
    Advice: the paper takes `lr` 3 to 10 times smaller than AdamW's, `weight_decay` as much larger.
    """

    aliases = {
        "lion_32bit": "optimizer: lion",
    }
    provides = {"clippable", "first_order", "per_parameter", "entry_moments"}
    requires = {"backward"}

    class Config(OptimizerConfig):
        lr: float = Field(2e-5, gt=0, le=1_000_000)
        beta1: float = Field(0.9, ge=0, lt=1, description="share of the momentum in the direction of a step")
        beta2: float = Field(0.99, ge=0, lt=1, description="share of the momentum that is kept")

    def __init__(self, params: ParamsT, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:
        group = {"params": [info.param for info in params]}
        return cls([group], config.lr, (config.beta1, config.beta2), config.weight_decay)

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        return info.param.nbytes

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["exp_avg"] = torch.zeros_like(param)
                momentum = state["exp_avg"]
                param.mul_(1 - lr * group["weight_decay"])
                param.add_(momentum.lerp(param.grad, 1 - beta1).sign_(), alpha=-lr)
                momentum.lerp_(param.grad, 1 - beta2)
        return loss
