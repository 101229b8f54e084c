"""GaLore: Adam in a slowly moving low-rank subspace of the gradient."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_step_8bit
from lrft.methods.optim._projected_adamw import ProjectedAdamW
from lrft.methods.optim._projection import Basis, Draw, back, project
from lrft.methods.optim._torch import State
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal, model_validator


@OPTIMIZERS.register
class GaLore(ProjectedAdamW):
    """Adam in a slowly moving r-dimensional subspace of the gradient of every projected matrix.

        every T steps:  P = the first r right singular vectors of G
        R = G P^T
        M <- b1 M + (1 - b1) R,  V <- b2 V + (1 - b2) R^2,  N = M / (sqrt(V) + eps)
        W <- W - lr scale sqrt(1 - b2^t) / (1 - b1^t) N P
        W <- (1 - lr wd) W

    with G the gradient of W, t the step, counted from 1; T = `update_every`, r = `rank`, at most min(out, in),
    scale = `scale`, which weight decay does not see, lr = `lr`, wd = `weight_decay`, b1 = `beta1`, b2 = `beta2`,
    eps = `eps`. This is for out >= in: with `side: std` the smaller dimension is compressed, so for out < in P holds
    left singular vectors and R = P^T G. M, V and t go on unchanged when P changes. `project` names the roles of the
    tensors W; all others move by AdamW of the same form. `projection: random` takes random orthonormal P. With
    `inner: sgd` N = M with M <- b1 M + R, without bias correction. Between two choices of P the weight changes by a
    matrix of rank r at most. At full rank this is not Adam, which depends on the basis; with `inner: sgd` and
    `scale: 1` it is then SGD.

    Shapes: P (r, in), or (out, r) where out < in; M, V, R (out, r), or (r, in). P is chosen at the first gradient other
    than zero; M = V = 0 before.
    State: 2 r max(out, in) + r min(out, in) numbers a projected matrix, 2 a parameter elsewhere; in bfloat16 2 bytes
    per number, 4 with `state_dtype: float32`. `bits: 8`: 2 + 8/256 bytes per number for M and V together, embeddings
    included (8 for an M or a tensor of fewer than 4096 numbers), and P in the gradient's dtype; eps then stands beside
    sqrt(V / (1 - b2^t)).
    Source: Zhao et al., "GaLore", ICML 2024, arXiv 2403.03507; numbers as galore-torch 1.0.
    Departures: P waits for a gradient other than zero, where the authors decompose the zero matrix. With 8-bit moments
    decay follows the update everywhere. `projection: random` and `inner: sgd` are additions.
    Advice: their pretraining has `lr` 0.01. `side: full` compresses both dimensions and repeats a run only on the same
    machine: right after an SVD the projected gradient is diagonal, and Adam enlarges the rounding noise beside it.
    """

    aliases = {
        "galore galore_adamw": "adapter: null\ntrainable: full\noptimizer: galore",
        "galore_adamw_8bit": "adapter: null\ntrainable: full\noptimizer: {method: galore, bits: 8}",
        "galore_update_interval": "adapter: null\ntrainable: full\noptimizer: {method: galore, update_every: 200}",
        "galore_adamw_layerwise": "adapter: null\ntrainable: full\n"
        "optimizer: {method: galore, per_layer: true}\ntrain: {clip: null}",
    }

    class Config(ProjectedAdamW.Config):
        side: Literal["std", "reverse_std", "left", "right", "full"] = Field(
            "std", description="std compresses the smaller dimension, reverse_std the larger, full both"
        )
        inner: Literal["adam", "sgd"] = Field("adam", description="what moves the projected gradient")
        bits: Literal[32, 8] = Field(32, description="8: moments as 8-bit codes, 32: as `state_dtype` says")
        eps: float | None = Field(None, gt=0, description="by default 1e-6, and 1e-8 with 8-bit moments")

        @model_validator(mode="after")
        def _bits_are_those_of_adam(self) -> Self:
            if self.bits == 8 and (self.inner != "adam" or self.state_dtype):
                raise ValueError(
                    "bits: 8 goes with `inner: adam` and no `state_dtype`; use bits: 32 with these"
                )
            return self

    config: Config

    def __init__(self, params: list[ParamInfo], config: Config, draw: Draw | None = None) -> None:
        super().__init__(params, config, draw)
        self.eps = config.eps or (1e-8 if config.bits == 8 else 1e-6)

    def projected(self, state: State, grad: Tensor, basis: Basis, lr: float) -> tuple[Tensor, float]:
        low = project(grad, basis)
        if self.config.bits == 8:
            change = torch.zeros_like(low)
            adam_step_8bit(state, low, change, lr, self.betas, self.eps)
            return back(change, basis).mul_(self.config.scale), -1.0
        direction, rate = (
            self.momentum(state, low, lr) if self.config.inner == "sgd" else self.adam(state, low, lr)
        )
        return back(direction, basis).mul_(self.config.scale), rate

    def plain(self, param: nn.Parameter, state: State, grad: Tensor, lr: float) -> None:
        if self.config.bits == 8:
            adam_step_8bit(state, grad, param, lr, self.betas, self.eps)
        else:
            super().plain(param, state, grad, lr)

    def momentum(self, state: State, low: Tensor, lr: float) -> tuple[Tensor, float]:
        """Heavy-ball direction with coefficient beta1, as torch.optim.SGD has it; without state at beta1 0."""
        if not self.betas[0]:
            return low, lr
        state["exp_avg"] = state["exp_avg"].mul_(self.betas[0]).add_(low) if "exp_avg" in state else low
        return state["exp_avg"], lr
