"""Schedule-free AdamW: gradients beside an average of the steps, which is what is scored and saved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_defaults
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Iterator, OptimizerConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError


@OPTIMIZERS.register
class ScheduleFree(Optimizer):
    """AdamW without a schedule: an average x of the steps is kept, gradients are taken beside it.

        y  = (1 - b1) z + b1 x                       before the gradient g of the step, which is that at y
        v <- b2 v + (1 - b2) g^2
        d  = g / (sqrt(v / (1 - b2^t)) + eps) + wd y
        z <- z - lr d
        x <- (1 - c) x + c z,  c = w_t / (w_1 + ... + w_t),  w_t = the square of the largest lr so far

    with t the step, counted from 1; lr = `lr`, which a warm-up of the recipe's schedule scales, wd = `weight_decay`,
    b1 = `beta1`, b2 = `beta2`, eps = `eps`. Between two steps every parameter is x: that is what is scored, saved,
    merged and gone on from.

    Shapes: x, y, z, v as the parameter; z = x and v = 0 before the first step.
    State: 2 numbers per parameter, z and v: 8 bytes. y takes the place of x during a step.
    Source: Defazio et al., "The Road Less Scheduled", NeurIPS 2024, arXiv 2405.15682; numbers as the authors' package
    schedulefree 1.4.1 (`r: 0`, `weight_lr_power: 2`), compared with it step for step.
    Departures: the warm-up is the schedule's, whose first rate may not be that of theirs. Decay acts on the steps z and
    not on their average x, as there, so that x shrinks more slowly than by 1 - lr wd a step.
    Advice: rates are 1 to 10 times those of a scheduled AdamW; `beta1: 0.95` or 0.98 for long runs. What moves
    parameters between two steps (a restart that keeps moments, an adapter with a step of its own) is refused, as z
    would not follow.
    """

    aliases = {
        "schedulefreeadamw schedule_free_adamw": "optimizer: schedule_free\nschedule: constant",
    }
    provides = {"clippable", "averaged"}
    requires = {"backward"}

    class Config(OptimizerConfig):
        lr: float = Field(0.0025, gt=0, le=1_000_000)
        beta1: float = Field(0.9, gt=0, lt=1, description="share of x in the point where gradients are taken")
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A schedule beside what does without one."""
            yield from super().clashes(recipe)
            if recipe["schedule.method"] != "constant":
                message = "goes down, which optimizer schedule_free is there to replace; write constant"
                yield Problem("schedule.method", message)

    versions: dict[Tensor, int]
    ahead: bool

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> ScheduleFree:
        for info in params:
            if info.param.dtype != torch.float32:
                message = (
                    f"{info.name} trains in less than float32, where an average of steps would hardly move"
                )
                raise ValueError(f"{message}; train adapters alone, or write model.dtype: float32")
        group: Group = {
            "params": [info.param for info in params],
            "steps": 0,
            "lr_max": 0.0,
            "weight_sum": 0.0,
        }
        defaults = adam_defaults(config)
        optimizer = cls([group], defaults)
        optimizer.versions, optimizer.ahead = {}, False
        return optimizer

    @torch.no_grad()
    def lead(self) -> None:
        """Every parameter from x to y.

        Raises:
            RecipeError: something else has moved one since the last step.
        """
        if self.ahead:
            return
        for group in self.param_groups:
            for param in group["params"]:
                z = self.state[param].get("z") if param in self.state else None
                if z is None:
                    continue
                if self.versions.get(param, param._version) != param._version:
                    message = "keeps an average that something else moved between two steps; choose another optimizer"
                    raise RecipeError(f"schedule_free {message}, such as adamw", "optimizer.method")
                param.lerp_(z, 1 - group["betas"][0])
        self.ahead = True

    @torch.no_grad()
    def rejoin(self) -> None:
        """Every parameter from y back to x."""
        for group in self.param_groups:
            for param in group["params"]:
                self._back(param, group["betas"][0])
        self.ahead = False

    def _back(self, param: Tensor, beta1: float) -> None:
        z = self.state[param].get("z") if param in self.state else None
        if self.ahead and z is not None:
            param.lerp_(z, 1 - 1 / beta1)
            self.versions[param] = param._version

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the others go back to x."""
        loss = loss_of(closure)
        for group in self.param_groups:
            group["steps"] += 1
            group["lr_max"] = max(group["lr_max"], group["lr"])
            group["weight_sum"] += group["lr_max"] ** 2
            share = group["lr_max"] ** 2 / group["weight_sum"] if group["weight_sum"] else 0.0
            for param in group["params"]:
                if param.grad is None:
                    self._back(param, group["betas"][0])
                else:
                    self._move(param, param.grad, group, share)
        self.ahead = False
        return loss

    def _move(self, param: Tensor, grad: Tensor, group: Group, share: float) -> None:
        state, (beta1, beta2) = self.state[param], group["betas"]
        direction = grad + 0  # a copy: gradients are still read after the step
        fresh = "z" not in state
        if fresh:
            state["z"], state["exp_avg_sq"] = param.clone(), torch.zeros_like(param)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        corrected = state["exp_avg_sq"] / (1 - beta2 ** group["steps"])
        direction.div_(corrected.sqrt_().add_(group["eps"])).add_(param, alpha=group["weight_decay"])
        if not fresh:
            self._back(param, beta1)
        state["z"].sub_(direction, alpha=group["lr"])
        param.lerp_(state["z"], share)
        self.versions[param] = param._version

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        return 2 * info.param.nbytes
