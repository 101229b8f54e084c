"""LoRA-FA's optimizer: A is frozen, and the gradient of B is corrected for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_defaults, adam_direction, corrected_rate
from lrft.methods.optim._pairs import Pair, gram, pairs_of, wide
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


@OPTIMIZERS.register
class LoRAFA(Optimizer):
    """AdamW on the gradient of B that moves the product as the full gradient does within the rows of a frozen A.

        gB' = (1/s^2) gB (A A^T + damping I)^-1,  gB = s G A^T,  so that  s gB' A ~ G A^T (A A^T)^-1 A
        m <- b1 m + (1 - b1) gB',  v <- b2 v + (1 - b2) gB'^2
        B <- B - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)
        B <- (1 - lr wd) B

    with G = dL/dW (out, in), s the scale of s B A at the site, damping = `damping`, lr = `lr`, wd = `weight_decay`,
    b1 = `beta1`, b2 = `beta2`, eps = `eps`, t the step, counted from 1. All else that trains (magnitudes, norms) moves
    by the same AdamW on its own gradient. The inverse is a pseudo-inverse.

    Shapes: A (r, in), which never moves; B, gB', m, v (out, r); m = v = 0 before the first step. The correction at step
    0 is as at any other.
    State: 2 numbers per number of B, 8 bytes; A has none.
    Source: Zhang et al., "LoRA-FA", 2023, arXiv 2308.03303 (its second version has the correction), as in PEFT's
    LoraFAOptimizer.
    Departures: the correction is computed in float32, not under bfloat16 autocast; s is that of each site, so rank and
    alpha patterns and rsLoRA are right; state belongs to the parameter, not to its name.
    """

    provides = {"clippable", "first_order", "per_parameter", "entry_moments"}
    requires = {"backward", "low_rank", "frozen_A"}

    class Config(OptimizerConfig):
        damping: float = Field(1e-8, gt=0, description="added to A A^T before it is inverted")
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-6, gt=0)

    pairs: dict[Tensor, Pair]

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> LoRAFA:
        """One group.

        Raises:
            ValueError: a B has no partner, or an A trains.
        """
        pairs = pairs_of(params)
        training = [info.name for info in params if info.role == "lora_A"]
        training += [info.name for info in params if info.role == "lora_B" and _trains(info.partner)]
        if training:
            raise ValueError(
                f"lora_fa needs the factor A frozen, and it trains ({training[0]}); "
                "choose adapter lora_fa, or optimizer adamw"
            )
        defaults = adam_defaults(config) | {"damping": config.damping}
        optimizer = cls([{"params": [info.param for info in params]}], defaults)
        optimizer.pairs = {pair.B: pair for pair in pairs}
        return optimizer

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                grad = param.grad
                if param in self.pairs:
                    pair = self.pairs[param]
                    grad = corrected(grad, pair.A, pair.scaling, group["damping"])
                self._adamw(param, grad, group)
        return loss

    def _adamw(self, param: Tensor, grad: Tensor, group: Group) -> None:
        """As transformers' former AdamW: eps before the bias correction, decay after the update."""
        state = self.state[param]
        state["step"] = state.get("step", 0) + 1
        direction = adam_direction(state, grad, group["betas"], group["eps"])
        param.add_(direction, alpha=-corrected_rate(group["lr"], state["step"], group["betas"]))
        param.mul_(1 - group["lr"] * group["weight_decay"])


def corrected(grad: Tensor, A: Tensor, scaling: float, damping: float) -> Tensor:
    """The gradient of B (m, r) for which s gB' A is the full gradient projected on the rows of A (r, n)."""
    return (wide(grad) @ gram(A.detach(), damping).inverse / scaling**2).to(grad.dtype)


def _trains(partner: Tensor | None) -> bool:
    return partner is not None and partner.requires_grad
