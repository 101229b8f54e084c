"""LoRA-XS: a small trained core between two frozen factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.ops.linalg import truncated_svd
from lrft.ops.low_rank import low_rank_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field


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

    class Config(LoRA.Config):
        alpha: float | None = Field(None, gt=0, description="by default the rank, so that s = 1")  # type: ignore[assignment]

    def __init__(self, config: Config, site: Site) -> None:
        Adapter.__init__(self, config, site)  # LoRA's own would make both factors train
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise ValueError(
                f"rank {config.rank} is more than the weight has singular vectors; use at most {most}"
            )
        self.scaling = _alpha(config) / (config.rank**0.5 if config.rslora else config.rank)
        self.drop = nn.Dropout(config.dropout)
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

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.scaling * self.B @ self.R @ self.A).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dropped = self.drop(x) if self.training and self.drop.p > 0 else None
        return self._through(self.R, x, base, dropped)

    def update(self, x: Tensor) -> Tensor:
        return self._through(self.R, x, None)

    def forward_since(self, start: Adapter, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._through(self.R - start.get_parameter("R"), x, base)

    def _through(
        self, core: Tensor, x: Tensor, base: FrozenLinear | None, dropped: Tensor | None = None
    ) -> Tensor:
        """The map with `core` in the middle; B R is formed, so that A, which is frozen, needs no input kept."""
        return low_rank_linear(
            x, base, self.A, self.B @ core, self.scaling, dropped=dropped, dtype=self.compute_dtype
        )

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank**2)

    @torch.no_grad()
    def factors(self, start: Adapter | None = None) -> tuple[Tensor, Tensor]:
        core = self.R if start is None else self.R - start.get_parameter("R")
        return core.float() @ self.A.float(), self.scaling * self.B.float()

    @torch.no_grad()
    def peft_tensors(self, start: Adapter | None = None) -> dict[str, Tensor]:
        core = self.R if start is None else self.R - start.get_parameter("R")
        return {"A": core @ self.A, "B": self.B.clone()}

    @classmethod
    def peft_config(cls, config: Any, with_start: bool = False) -> dict[str, Any] | None:
        """A plain LoRA of the same rank, R folded into A; a start has the same frame and costs no rank."""
        return super().peft_config(config.model_copy(update={"alpha": _alpha(config)}))


def _alpha(config: Any) -> float:
    return float(config.rank) if config.alpha is None else float(config.alpha)
