"""LoRA with one of its factors frozen at an orthonormal or random start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Literal


@ADAPTERS.register
class Asymmetry(LoRA):
    """Low-rank adaptation that trains one factor; the other is frozen, by default with orthonormal rows.

        y  = x W^T + b + s (drop(x) A^T) B^T
        W' = W + s B A,  one of A and B constant

    with r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`) and drop, dropout of probability `dropout`,
    as in `lora`, `rank_pattern` and `alpha_pattern` too. `train: B`, the paper's advice, freezes A; `train: A` freezes
    B. The frozen factor is, by `frozen`,

        orthonormal      of random orthonormal rows of A, or columns of B
        kaiming          as LoRA's A, U(-1/sqrt(in), 1/sqrt(in)) for A and U(-1/sqrt(r), 1/sqrt(r)) for B
        singular         the r leading right singular vectors of W as A, or the left ones as B
        last_singular    the r last of them

    Shapes: A (r, in), B (out, r); the one that trains = 0, so W' = W at step 0.
    Trains: r out numbers per site with `train: B`, r in with `train: A`; the frozen factor is saved with them. With
    `train: B` and no dropout the input is not kept for the backward pass, only x A^T, r numbers a token.
    Source: Zhu et al., "Asymmetry in Low-Rank Adapters of Foundation Models", 2024, arXiv 2402.16842, and the authors'
    code (Jiacheng-Zhu-AIML/AsymmetryLoRA). `train: B, frozen: kaiming` is FFA-LoRA: Sun et al., "Improving LoRA in
    Privacy-preserving Federated Learning", 2024, arXiv 2403.12313, and the first version of LoRA-FA (`lora_fa`).
    Departures: orthonormal vectors come from the QR decomposition of a Gaussian matrix, the authors' from the SVD of a
    uniform one as large as W; singular vectors as A are W's right ones, where the authors' code takes columns of the
    matrix that has them as rows. The middle factor that the code can train is left out.
    Advice: rows of norm 1 are some sqrt(3) times LoRA's, so `alpha` does not carry over; spend what is saved on twice
    the rank. Inits are for adapters whose factors both train.
    """

    aliases = {
        "lora_asymmetry asymmetric_lora": "adapter: asymmetry",
        "ffa_lora ffa": "adapter: {method: asymmetry, frozen: kaiming}",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    peft = LoRA.peft

    config: Config

    class Config(LoRA.Config):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        train: Literal["A", "B"] = Field("B", description="the factor that trains; the other one is frozen")
        frozen: Literal["orthonormal", "kaiming", "singular", "last_singular"] = Field(
            "orthonormal", description="what the frozen factor is"
        )

    def __init__(self, config: Config, site: Site) -> None:
        Adapter.__init__(self, config, site)  # LoRA's own would make both factors train
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise ValueError(
                f"rank {config.rank} is more than any change of the weight has; use at most {most}"
            )
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.A = nn.Parameter(torch.zeros(config.rank, site.in_features), requires_grad=config.train == "A")
        self.B = nn.Parameter(torch.zeros(site.out_features, config.rank), requires_grad=config.train == "B")
        self.reset()

    def reset(self) -> None:
        """The trained factor back to 0; a random frozen one is drawn anew."""
        trained, frozen = (self.B, self.A) if self.config.train == "B" else (self.A, self.B)
        nn.init.zeros_(trained)
        if self.config.frozen == "kaiming":
            nn.init.kaiming_uniform_(frozen, a=math.sqrt(5))
        elif self.config.frozen == "orthonormal":
            nn.init.orthogonal_(frozen)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if "singular" not in self.config.frozen:
            return
        last, r = self.config.frozen == "last_singular", self.config.rank
        U, _, Vh = truncated_svd(weight, min(weight.shape) if last else r)
        if self.config.train == "B":
            self.A.copy_(Vh[-r:])
        else:
            self.B.copy_(U[:, -r:])

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.out_features if config.train == "B" else site.in_features))
