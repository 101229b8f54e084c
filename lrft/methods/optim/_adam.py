"""Adam's moments in a parameter's state: the direction of a step, and the same with moments in 8 bits."""

from __future__ import annotations

import importlib
import math
from functools import cache
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.methods.optim._bnb import _bitsandbytes_optim
from lrft.methods.optim._torch import Group, State

BLOCK = 256
SMALLEST_8BIT = 4096


class AdamConfig(Protocol):
    """Settings that every optimizer after Adam has."""

    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def adam_defaults(config: AdamConfig) -> Group:
    """The defaults of its groups, as torch's own Adam names them."""
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }


def adam_direction(state: State, grad: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """N = m / (sqrt(v) + eps) after the moments took `grad`; they get its shape and dtype at the first step.

    Bias is left to `bias_correction`, so eps is added before it, as in transformers' AdamW.
    """
    if "exp_avg" not in state:
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    exp_avg.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    direction: Tensor = exp_avg / exp_avg_sq.sqrt().add_(eps)
    return direction


def corrected_rate(lr: float, step: int, betas: tuple[float, float]) -> float:
    """The rate lr sqrt(1 - b2^t) / (1 - b1^t), for the t-th step, counted from 1."""
    return lr * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)


def adam_step_8bit(
    state: State, grad: Tensor, target: Tensor, lr: float, betas: tuple[float, float], eps: float
) -> None:
    """`target` -= lr m^ / (sqrt(v^) + eps), in place, with moments as 8-bit codes in blocks of 256.

    A tensor of fewer than 4096 numbers keeps float32 moments.

    Args:
        state: holds `step`, counted from 1.
        target: of the shape and dtype of `grad`.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    if grad.numel() < SMALLEST_8BIT:
        later = math.sqrt(1 - betas[1] ** state["step"])  # eps goes beside the corrected sqrt(v)
        direction = adam_direction(state, grad.float(), betas, eps * later)
        target.add_(direction, alpha=-corrected_rate(lr, state["step"], betas))
        return
    if "exp_avg" not in state:
        _start_8bit(state, grad)
    if grad.is_meta:
        return
    whole = target.contiguous()
    functional, signed, unsigned = _kernel(grad.device)
    functional.optimizer_update_8bit_blockwise(
        "adam",
        grad.contiguous(),
        whole,
        state["exp_avg"],
        state["exp_avg_sq"],
        *betas,
        0.0,  # beta3 and alpha belong to another optimizer of the same kernel
        0.0,
        eps,
        state["step"],
        lr,
        signed,
        unsigned,
        state["exp_avg_absmax"],
        state["exp_avg_sq_absmax"],
    )
    if not target.is_contiguous():
        target.copy_(whole)


def load_in_own_dtype(optimizer: torch.optim.Optimizer, saved: StateDict) -> None:
    """After torch's `load_state_dict`: state tensors in the dtype they were saved in.

    Torch casts them to the parameter's, which rounds float32 state of bfloat16 weights and breaks 8-bit codes.
    """
    places = [index for group in saved["param_groups"] for index in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, param in zip(places, params, strict=True):
        for key, value in saved["state"].get(index, {}).items():
            if torch.is_tensor(value):
                optimizer.state[param][key] = value.to(param.device)


def _start_8bit(state: State, grad: Tensor) -> None:
    blocks = -(-grad.numel() // BLOCK)
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros(grad.shape, dtype=torch.uint8, device=grad.device)
        state[f"{name}_absmax"] = torch.zeros(blocks, device=grad.device)


@cache
def _kernel(device: torch.device) -> tuple[ModuleType, Tensor, Tensor]:
    """The functions of bitsandbytes, and its code books for signed and unsigned numbers, shared by all parameters."""
    _bitsandbytes_optim()
    functional = importlib.import_module("bitsandbytes.functional")
    return (
        functional,
        functional.create_dynamic_map(signed=True).to(device),
        functional.create_dynamic_map(signed=False).to(device),
    )
