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

    P (r, n) where m >= n, else (m, r): normal numbers of variance 1/r, drawn anew every T = update_every steps.
    R = G P^T (m, r), Adam's direction N from R with M and V (m, r) as in `galore`; then, a row (column) at a time,
    phi_i = ||N_i|| / (||R_i|| + 1e-8)    `scale_type: tensor` has one ||N|| / (||R|| + 1e-8)
    S = phi G,  q = max(||S|| / (s + 1e-8), gamma) / gamma,  S <- S / q,  s = ||S||    s: of the step before
    W <- W - lr sqrt(scale) sqrt(1 - b2^t) / (1 - b1^t) S;  then W <- (1 - lr wd) W.  Other tensors: AdamW.
    APOLLO-Mini is {rank: 1, scale_type: tensor, scale: 128}.
    State: 2 r max(m, n) + r min(m, n) + 1 numbers a matrix, 2 a number elsewhere; in bfloat16 2 bytes per number
    (s has 4). With `keep_projection: false` P is drawn again from its seed at every step, as the paper counts:
    2 r max(m, n) + 1.
    Source: Zhu et al., "APOLLO: SGD-like Memory, AdamW-level Performance", MLSys 2025, arXiv 2412.05270; numbers
    as apollo-torch 1.0.3, given the same P.
    Departures: P depends on `seed` and the tensor's name, the authors' on its place in the list. The limiter acts
    before sqrt(scale), their default; after it the result is the same up to the 1e-8. Norms are taken in
    float32. P and s wait for a first gradient other than zero; r is at most min(m, n). Their pretraining has lr
    0.01 and rank 256 (1B and 7B), a quarter of the width below.
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
        rank: int = Field(256, gt=0, description="of the projected gradient; at most the smaller dimension")
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
