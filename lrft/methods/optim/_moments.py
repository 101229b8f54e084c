"""Adam's moments in torch's order of operations, for optimizers that keep them of something other than a parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.methods.optim._torch import State


def start_moments(state: State, like: Tensor) -> None:
    """Zero moments in the shape and dtype of `like`, at step 0."""
    state["step"] = 0
    state["exp_avg"] = torch.zeros_like(like, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(like, memory_format=torch.preserve_format)


def adam_update(grad: Tensor, state: State, lr: float, betas: tuple[float, float], eps: float) -> Tensor:
    """What Adam adds to a parameter, -lr m^ / (sqrt(v^) + eps), in the shape of `grad`; moves the moments on.

    Added to a parameter that was decayed before, it is torch.optim.AdamW to the last bit.
    """
    beta1, beta2 = betas
    state["step"] += 1
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    step_size = lr / (1 - beta1 ** state["step"])
    root = (1 - beta2 ** state["step"]) ** 0.5
    update: Tensor = m.mul(-step_size).div_((v.sqrt() / root).add_(eps))
    return update
