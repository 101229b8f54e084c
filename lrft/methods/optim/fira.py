"""Fira: GaLore, and the rest of the gradient at a rate learnt from the projected part."""

from __future__ import annotations

from torch import Tensor

from lrft.methods.optim._projected_adamw import ProjectedAdamW
from lrft.methods.optim._projection import Basis, back, project, rank_axis
from lrft.methods.optim._scaling import adam_stretch, limit_growth
from lrft.methods.optim._torch import State
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal


@OPTIMIZERS.register
class Fira(ProjectedAdamW):
    """Adam in a low-rank subspace of the gradient, and a scaled copy of what lies outside of it.

        every T steps:  P = the first r right singular vectors of G
        R = G P^T,  N = Adam's direction from R, with moments M and V as in `galore`
        phi_i = ||N_i|| / (||R_i|| + 1e-8)                       a row i at a time
        S = phi (G - scale R P)
        q = max(||S|| / (s + 1e-8), gamma) / gamma,  S <- S / q,  s = ||S||
        W <- W - lr sqrt(1 - b2^t) / (1 - b1^t) (scale N P + S)
        W <- (1 - lr wd) W

    with G the gradient of W, t the step, counted from 1, s the norm of the step before (the first step is not limited);
    T = `update_every`, r = `rank`, at most min(out, in), gamma = `gamma`, so that S grows by at most a hundredth a step
    at 1.01; scale = `scale`, lr = `lr`, wd = `weight_decay`, b1 = `beta1`, b2 = `beta2`, eps = `eps`. This is for
    out >= in: with `side: std` the smaller dimension is compressed, so for out < in P holds left singular vectors,
    R = P^T G, and rows are columns: phi has one factor for each index of the larger dimension. `residual: code` is this
    S, `residual: paper` has G - R P. `projection: random` takes random orthonormal P. `project` names the roles of the
    tensors W; all others move by AdamW.

    Shapes: P (r, in), or (out, r) where out < in; R, N, M, V (out, r), or (r, in); S (out, in).
    State: 2 r max(out, in) + r min(out, in) + 1 numbers a projected matrix, 2 a parameter elsewhere; in bfloat16 2
    bytes per number (s has 4), 4 with `state_dtype: float32`. A step needs one more matrix of the gradient's size.
    Source: Chen et al., "Fira", 2024, arXiv 2410.01623; numbers as the package fira 1.0.2.
    Departures: the default residual is that of the authors' code, whose back-projection multiplies by `scale`, so that
    for scale < 1 a part of the projected gradient stays in S; the paper prints G - R P. Norms are taken in float32. P
    and s wait for a first gradient other than zero. `projection: random` is an addition.
    Advice: their fine-tuning trains LoRA and projects its factors: `project: [lora_A, lora_B]`, `rank` 16, `scale` 1;
    pretraining: `lr` 0.01, `scale` 0.25.
    """

    class Config(ProjectedAdamW.Config):
        side: Literal["std", "reverse_std", "left", "right"] = Field(
            "std", description="std compresses the smaller dimension, reverse_std the larger"
        )
        eps: float = Field(1e-6, gt=0)
        residual: Literal["code", "paper"] = Field(
            "code", description="what S is made of: G - scale P^T P G, or G - P^T P G"
        )
        gamma: float = Field(1.01, gt=1, description="most that the norm of S may grow by in one step")

    config: Config

    def projected(self, state: State, grad: Tensor, basis: Basis, lr: float) -> tuple[Tensor, float]:
        low = project(grad, basis)
        direction, rate = self.adam(state, low, lr)
        inside = back(low, basis)
        if self.config.residual == "code":
            inside.mul_(self.config.scale)
        outside = (grad - inside).mul_(adam_stretch(direction, low, rank_axis(basis)))
        limit_growth(outside, state, self.config.gamma)
        return back(direction, basis).mul_(self.config.scale).add_(outside), rate
