"""APOLLO: the plain gradient, scaled by what Adam would do to a random projection of it."""

from __future__ import annotations

import math
from typing import Self

from torch import Tensor

from lrft.methods.optim._projected_adamw import ProjectedAdamW
from lrft.methods.optim._projection import Basis, normal_basis, project, rank_axis
from lrft.methods.optim._scaling import adam_stretch, limit_growth
from lrft.methods.optim._torch import State
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal, model_validator


@OPTIMIZERS.register
class APOLLO(ProjectedAdamW):
    """The gradient itself, with a learning rate a channel from Adam on a random projection of it.

        every T steps:  P ~ N(0, 1/r)
        R = G P^T,  N = Adam's direction from R, with moments M and V as in `galore`
        phi_i = ||N_i|| / (||R_i|| + 1e-8)                       a row i at a time
        S = phi G,  q = max(||S|| / (s + 1e-8), gamma) / gamma,  S <- S / q,  s = ||S||
        W <- W - lr sqrt(scale) sqrt(1 - b2^t) / (1 - b1^t) S
        W <- (1 - lr wd) W

    with G the gradient of W, t the step, counted from 1, s the norm of the step before (the first step is not limited);
    T = `update_every`, r = `rank`, at most min(out, in), gamma = `gamma` (null: no limit), scale = `scale`, lr = `lr`,
    wd = `weight_decay`, b1 = `beta1`, b2 = `beta2`, eps = `eps`. This is for out >= in: with `side: std` the smaller
    dimension is compressed, so for out < in R = P^T G, and rows are columns. `scale_type: channel` has one phi_i for
    each index of the larger dimension, `scale_type: tensor` the one ||N|| / (||R|| + 1e-8). `projection: svd` takes
    singular vectors of G for P. `project` names the roles of the tensors W; all others move by AdamW.

    Shapes: P (r, in), or (out, r) where out < in; R, N, M, V (out, r), or (r, in); phi (out, 1), or (1, in).
    State: 2 r max(out, in) + r min(out, in) + 1 numbers a projected matrix, 2 a parameter elsewhere; in bfloat16 2
    bytes per number (s has 4), 4 with `state_dtype: float32`. With `keep_projection: false` P is drawn again from its
    seed at every step, as the paper counts: 2 r max(out, in) + 1.
    Source: Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance", MLSys 2025, arXiv 2412.05270; numbers as
    apollo-torch 1.0.3, given the same P.
    Departures: P depends on `seed` and the tensor's name, the authors' on its place in the list. The limiter acts
    before sqrt(scale), their default; after it the result is the same up to the 1e-8. Norms are taken in float32. P and
    s wait for a first gradient other than zero.
    Advice: APOLLO-Mini is `rank: 1`, `scale_type: tensor`, `scale: 128`. Their pretraining has `lr` 0.01 and `rank` 256
    (1B and 7B), a quarter of the width below.
    """

    aliases = {
        "apollo apollo_adamw": "adapter: null\ntrainable: full\noptimizer: apollo",
        "apollo_mini": "adapter: null\ntrainable: full\n"
        "optimizer: {method: apollo, rank: 1, scale_type: tensor, scale: 128}",
        "apollo_update_interval": "adapter: null\ntrainable: full\noptimizer: {method: apollo, update_every: 200}",
        "apollo_adamw_layerwise": "adapter: null\ntrainable: full\n"
        "optimizer: {method: apollo, per_layer: true}\ntrain: {clip: null}",
    }

    class Config(ProjectedAdamW.Config):
        rank: int = Field(
            256, gt=0, le=65_536, description="of the projected gradient; at most the smaller dimension"
        )
        scale: float = Field(1.0, gt=0, description="the update is multiplied by its square root")
        projection: Literal["svd", "random"] = Field(
            "random", description="normal random numbers, or singular vectors of the gradient"
        )
        side: Literal["std", "reverse_std", "left", "right"] = Field(
            "std", description="std compresses the smaller dimension, reverse_std the larger"
        )
        eps: float = Field(1e-6, gt=0)
        scale_type: Literal["channel", "tensor"] = Field(
            "channel", description="one learning rate for each index of the larger dimension, or one a tensor"
        )
        gamma: float | None = Field(
            1.01, gt=1, description="most that the norm of the update may grow by in one step; null: no limit"
        )
        keep_projection: bool = Field(
            True, description="false: draw it again at every step instead of keeping it"
        )

        @model_validator(mode="after")
        def _only_draws_are_repeated(self) -> Self:
            if self.projection == "svd" and not self.keep_projection:
                raise ValueError(
                    "keep_projection: false needs `projection: random`; an SVD cannot be drawn again"
                )
            return self

    config: Config

    def projected(self, state: State, grad: Tensor, basis: Basis, lr: float) -> tuple[Tensor, float]:
        low = project(grad, basis)
        direction, rate = self.adam(state, low, lr)
        axis = rank_axis(basis) if self.config.scale_type == "channel" else None
        update = (grad * adam_stretch(direction, low, axis)).to(grad.dtype)
        if self.config.gamma is not None:
            limit_growth(update, state, self.config.gamma)
        return update.mul_(math.sqrt(self.config.scale)), rate

    def new_basis(self, grad: Tensor, name: str, refresh: int) -> Basis:
        if self.config.projection == "svd":
            return super().new_basis(grad, name, refresh)
        return normal_basis(grad, self.config.rank, self.config.side, name, refresh, self.draw)

    def basis(self, state: State, grad: Tensor, name: str) -> Basis | None:
        found = super().basis(state, grad, name)
        if self.config.keep_projection or not state["refreshes"]:
            return found
        for side in found or {}:
            del state[side]
        return found or self.new_basis(grad, name, state["refreshes"] - 1)
