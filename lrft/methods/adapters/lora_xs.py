"""LoRA-XS: a small trained core between two frozen factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch, LowRank, PeftForm
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.methods.adapters.lora import LoRA
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field
from lrft.registry.json import Json


def xs_form_keys(config: LoRAXS.Config, with_start: bool) -> dict[str, Json]:
    """A plain LoRA of the same rank, R folded into A."""
    return lora_keys(config.rank, _alpha(config), config.dropout, config.rslora)


def xs_form_tensors(adapter: LoRAXS, start: LoRAXS | None) -> dict[str, Tensor]:
    """R A and B, with the core less that of the start."""
    core = adapter.R if start is None else adapter.R - start.R
    return {"A": (core @ adapter.A).detach(), "B": adapter.B.clone()}


@ADAPTERS.register
class LoRAXS(LoRA):
    """LoRA with extremely small number of parameters: only the r x r core between two frozen factors trains.

        y  = x W^T + b + s ((drop(x) A^T) R^T) B^T
        W' = W + s B R A
        A  = S_r V_r^T,  B = U_r,  W = U S V^T

    with r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), `alpha` = r unless it is set, so that
    s = 1; U_r, S_r, V_r the r leading singular triplets of W. drop is dropout of probability `dropout`; `rank_pattern`
    and `alpha_pattern` as in `lora`. The SVD is of the weight as the base stores it, on attaching.

    Shapes: A (r, in) and B (out, r), frozen; R (r, r) = 0, so W' = W at step 0.
    Trains: r^2 numbers per site, whatever its size; A and B are saved with them. The input is not kept for the backward
    pass, only x A^T, r numbers a token.
    Source: Bałazy et al., "LoRA-XS", 2024, arXiv 2405.17604, and the authors' code; the structure of LoRA-SB, 2024,
    arXiv 2411.19557.
    Departures: R starts at exactly 0 without an init of its own; the SVD is exact, the authors' is randomised.
    Advice: `init: lora_xs` takes the SVD before quantization and draws R ~ N(0, 1e-10) as published; `init: lora_sb`
    sets A, B and R from the gradient.
    """

    provides = {"adapters", "mergeable", "linear_delta", "core_matrix"}
    roles = {"R": "core"}
    peft = PeftForm(xs_form_keys, xs_form_tensors)

    config: Config

    class Config(LoRA.Config):
        alpha: float | None = Field(
            None, gt=0, le=1_000_000, description="by default the rank, so that s = 1"
        )  # type: ignore[assignment]

    def __init__(self, config: Config, site: Site) -> None:
        Adapter.__init__(self, config, site)  # LoRA's own would make both factors train
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise ValueError(
                f"rank {config.rank} is more than the weight has singular vectors; use at most {most}"
            )
        self.scaling = _alpha(config) / (config.rank**0.5 if config.rslora else config.rank)
        self.A = nn.Parameter(torch.zeros(config.rank, site.in_features), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(site.out_features, config.rank), requires_grad=False)
        self.R = nn.Parameter(torch.zeros(config.rank, config.rank))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.A.any():  # an init has set the frame, or it stays what it was before a restart
            return
        U, S, Vh = truncated_svd(weight, self.config.rank)
        self.A.copy_(S[:, None] * Vh)
        self.B.copy_(U)

    def reset(self) -> None:
        """The core back to 0; the frame stays, which is where the change can live."""
        nn.init.zeros_(self.R)

    def branch(self) -> Branch:
        """B R is formed, so that A, which is frozen, needs no input kept."""
        return Branch(self.A, self.B @ self.R, self.scaling, dropout=self.config.dropout)

    def branch_since(self, start: LowRank) -> Branch:
        """A start has the same frame and costs no rank."""
        return Branch(self.A, self.B @ (self.R - start.get_parameter("R")), self.scaling)

    @staticmethod
    def count(config: LoRA.Config, site: Site) -> int:
        return int(config.rank**2)


def _alpha(config: LoRAXS.Config) -> float:
    return float(config.rank) if config.alpha is None else float(config.alpha)
