"""DeLoRA: a low-rank change whose components are normalised, so that one number bounds its size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.params import Site
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json

SMALLEST = 1e-4  # of a norm that is divided by: every column of B is 0 at step 0


def delora_form_keys(config: DeLoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "DELORA",
        "r": config.rank,
        "delora_lambda": config.bound,
        "module_dropout": config.dropout,
    }


@ADAPTERS.register
class DeLoRA(LowRank):
    """Decoupled low-rank adaptation: normalised components say the direction of the change, one number its strength.

        W' = W + (l / r) B diag(1 / (|a_i| |b_i|)) A diag(n)
        y  = x W^T + b + drop(x) (W' - W)^T

    with r = `rank`, a_i the rows of A, b_i the columns of B, their lengths taken as 1e-4 at least, n the norms of the
    columns of W, one for each input, fixed from the start on. So the change divided by n has a Frobenius norm of |l| at
    most. drop is dropout of probability `dropout`.

    Shapes: A (r, in) as in `lora`, B (out, r) = 0, so W' = W at step 0; l (1) = `bound`; n (in), saved beside them.
    Trains: r (in + out) + 1 numbers per site.
    Source: Bini, Girrbach and Akata, "Decoupling Angles and Strength in Low-rank Adaptation", ICLR 2025, arXiv
    2503.18225, and the authors' code; start and bound of the lengths: the authors' layer in PEFT, checked on the same
    numbers.
    Departures: their first code starts from a random B and subtracts a frozen copy of the start; they replaced that by
    the B = 0 used here.
    Advice: learning rates some ten times those of LoRA (PEFT's own run: 1e-3). The first step of B is large for
    optimizers without a second moment, as its gradient is divided by 1e-4.
    """

    aliases = {"decoupled_lora": "adapter: delora"}
    provides = {"adapters", "mergeable", "linear_delta", "undivided"}
    roles = {"A": "lora_A", "B": "lora_B", "strength": "magnitude"}
    peft = PeftForm(
        delora_form_keys,
        names={
            "A": "delora_A",
            "B": "delora_B",
            "strength": "delora_lambda",
            "norms": "delora_w_norm",
        },
        transposed=False,
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        bound: float = Field(15.0, gt=0, description="what bounds the size of the change at step 0")
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.A, self.B = empty_pair(config.rank, site)
        self.strength = nn.Parameter(torch.empty(1))
        self.register_buffer("norms", torch.ones(site.in_features))
        self.reset()

    def reset(self) -> None:
        start_pair(self.A, self.B)
        nn.init.constant_(self.strength, self.config.bound)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        self.get_buffer("norms").copy_(weight.float().norm(dim=0))

    def branch(self) -> Branch:
        lengths = self.A.norm(dim=1).clamp_min(SMALLEST) * self.B.norm(dim=0).clamp_min(SMALLEST)
        gains = self.strength / self.config.rank / lengths
        down = gains[:, None] * self.A * self.get_buffer("norms")
        return Branch(down, self.B, dropout=self.config.dropout)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return config.rank * (site.in_features + site.out_features) + 1
