"""Adam-mini: one second moment for every block of a tensor, where Adam has one for every number."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_defaults, load_in_own_dtype
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig

Blocks = tuple[tuple[int, ...], int | None]
"""The shape in which a tensor is seen, and the axis along which a block lies; None where every number is a block."""


@OPTIMIZERS.register
class AdamMini(Optimizer):
    """AdamW with one learning rate for a block of numbers, from the mean of their squared gradients.

        p <- (1 - lr wd) p
        m <- b1 m + (1 - b1) g,  v_b <- b2 v_b + (1 - b2) mean of g^2 in block b
        p <- p - lr (m / (1 - b1^t)) / (sqrt(v_b / (1 - b2^t)) + eps)

    with g the gradient of the parameter p, t the step, counted from 1; lr = `lr`, wd = `weight_decay`, b1 = `beta1`,
    b2 = `beta2`, eps = `eps`. A block is

        queries and keys                                a head
        other linear layers                             a row of W (out, in), which is an output neuron
        embedding, head                                 a row, which is a token
        several matrices in a tensor, as of experts     a row of each, which is an output neuron
        norms                                           the whole tensor
        biases                                          a number
        other tensors of two dimensions                 a row
        factors and other tensors of adapters           a row; of those with one dimension, a number

    Weight decay spares norms and biases.

    Shapes: m as p; v (blocks, 1); both 0 before the first step.
    State: 1 number per parameter and 1 per block, in float32: 4 (numbers + blocks) bytes.
    Source: Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More", ICLR 2025, arXiv 2406.16793; blocks and
    order of operations are those of the authors' package adam-mini 1.1.1, compared with it step for step.
    Departures: settled here: the rows of adapters' tensors, which their names do not cover. Layers that hold queries
    and keys beside values in one weight go by rows. m and v are float32, there of the gradient's dtype.
    Advice: rates, betas and decay are those of AdamW. It saves little on the factor B of a LoRA: r numbers a row.
    """

    aliases = {
        "adamini use_adam_mini": "optimizer: adam_mini",
    }
    provides = {"clippable", "first_order", "per_parameter"}
    requires = {"backward"}

    class Config(OptimizerConfig):
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    blocks: dict[Tensor, Blocks]

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> AdamMini:
        """One group that decays, and one of norms and biases that does not."""
        spared = [info.param for info in params if not _decays(info)]
        groups: list[Group] = [
            {"params": [info.param for info in params if _decays(info)]},
            {"params": spared, "weight_decay": 0.0},
        ]
        defaults = adam_defaults(config)
        optimizer = cls([group for group in groups if group["params"]], defaults)
        optimizer.blocks = {info.param: blocks_of(info) for info in params}
        return optimizer

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        shape, axis = blocks_of(info)
        numbers = info.param.numel()
        return 4 * (numbers + (numbers if axis is None else numbers // shape[axis]))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, param.grad.float(), group)
        return loss

    def _move(self, param: Tensor, grad: Tensor, group: Group) -> None:
        state, (shape, axis), (beta1, beta2) = self.state[param], self.blocks[param], group["betas"]
        square = grad.reshape(shape).square()
        if axis is not None:
            square = square.mean(dim=axis, keepdim=True)
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros(param.shape, dtype=torch.float32, device=param.device)
            state["exp_avg_sq"] = torch.zeros_like(square)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).add_(square, alpha=1 - beta2)
        root = math.sqrt(1 - beta2 ** state["step"])
        spread = (state["exp_avg_sq"].sqrt() / root).add_(group["eps"])
        update = (state["exp_avg"].view(shape) / spread).view(param.shape)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(update, alpha=-group["lr"] / (1 - beta1 ** state["step"]))

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take the state back in float32."""
        super().load_state_dict(state_dict)
        load_in_own_dtype(self, state_dict)


def blocks_of(info: ParamInfo) -> Blocks:
    """How a parameter falls into blocks."""
    shape = tuple(info.param.shape)
    if _is_norm(info):
        return (1, info.param.numel()), 1
    if len(shape) < 2 or (_is_bias(info) and not info.site):
        return shape, None
    if info.head_rows:
        return (shape[0] // info.head_rows, info.head_rows * shape[1]), 1
    return shape, len(shape) - 2 if info.transposed else len(shape) - 1


def _decays(info: ParamInfo) -> bool:
    return not _is_norm(info) and not _is_bias(info)


def _is_norm(info: ParamInfo) -> bool:
    one = info.param.numel() == max(
        info.param.shape, default=1
    )  # in one dimension, whatever others say of it
    return info.role == "vector" and one and not info.site and not _is_bias(info)


def _is_bias(info: ParamInfo) -> bool:
    return info.name.endswith("bias")
