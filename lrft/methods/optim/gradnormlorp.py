"""GradNormLoRP: factors beside a trained magnitude, moved by Adam in a subspace of both sides of their gradients."""

from __future__ import annotations

from typing import ClassVar

from lrft.methods.optim.galore import GaLore
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal


@OPTIMIZERS.register
class GradNormLoRP(GaLore):
    """Gradient weight-normalized low-rank projection: DoRA's form of the weight, a two-sided GaLore for its factors.

        W' = m * (W + s B A) / ||W + s B A||                     a row at a time, by `adapter: dora`
        every T steps:  U, V = the first r left and right singular vectors of D
        D  = the gradient of A, or that of B
        p <- p - lr scale c U N V^T,  N = Adam's direction from U^T D V
        p <- (1 - lr wd) p

    for p each of A and B, with c = sqrt(1 - b2^t) / (1 - b1^t), t the step, counted from 1, and Adam's direction, its
    moments, `lr`, `weight_decay`, `beta1`, `beta2`, `eps` and 8 `bits` as in `galore`; T = `update_every`, r = `rank`,
    scale = `scale`. m and all other parameters move by AdamW of the same form. `side` compresses one side alone, as the
    authors' code does; `project` names the roles of the tensors p.

    Shapes: A (R, in), B (out, R), m (out) of the adapter of rank R; U (R, r) and V (r, in) for A, U (out, r) and
    V (r, R) for B, r at most R; N (r, r).
    State: 2 r^2 + r (R + in) numbers for A, 2 r^2 + r (out + R) for B, 2 a parameter elsewhere; bytes as in `galore`.
    Source: Huang et al., "Gradient Weight-Normalized Low-Rank Projection for Efficient LLM Training", AAAI 2025,
    arXiv 2412.19616: the two equations from summaries of the paper, which was not to be had whole.
    Departures: settled here: D is the gradient of each factor, since W rests, and weight normalisation is that of the
    weight in the forward pass, its norm held constant in the backward pass as in `dora`. The authors' code projects one
    side, normalises the rows of each factor anew at every step, so that what was learnt of their length is lost, and
    never writes back what its form for pre-training learns: neither is followed. Pre-training is left out.
    Advice: the defaults are those of the authors' GLUE runs. With `side: full` a run repeats on the same machine only,
    as in `galore`.
    """

    aliases = {
        "gradient_weight_normalized_low_rank_projection": "adapter: dora\noptimizer: gradnormlorp",
    }
    requires: ClassVar[set[str]] = {"backward", "low_rank", "trained_pair", "decomposed"}

    class Config(GaLore.Config):
        lr: float = Field(3e-5, gt=0, le=1_000_000)
        rank: int = Field(
            4, gt=0, le=65_536, description="of the projected gradients; at most that of the adapter"
        )
        update_every: int = Field(500, gt=0, description="steps between two choices of the subspaces")
        scale: float = Field(4.0, gt=0, description="factor of the projected update")
        side: Literal["std", "reverse_std", "left", "right", "full"] = Field(
            "full", description="full compresses both sides, the others one, as in `galore`"
        )
        project: list[Literal["matrix", "embedding", "head", "lora_A", "lora_B", "core", "router"]] = Field(
            ["lora_A", "lora_B"], min_length=1, description="roles of the tensors that are projected"
        )
