"""FlyLoRA: every token uses the few rank components that a frozen sparse projection answers most strongly in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.callback import TimedMethod
from lrft.core.context import is_first_pass, real_tokens
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.routed import Routed
from lrft.core.run import Run
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator


@ADAPTERS.register
class FlyLoRA(Routed, Adapter):
    """Implicit rank-wise mixture of experts: a frozen sparse projection chooses rank components, token by token.

        h = drop(x) A^T
        y = x W^T + b + s (h where the token chose, else 0) B^T
        chosen: the k largest of |h + d|
        d_i <- d_i + u sign(mean of c - c_i)      after every step

    with r = `rank`, k = `top_k`, s = `alpha` / r, u = `balance`, drop dropout of probability `dropout`; c_i the number
    of real tokens of the step that chose component i. d has a part in the choice and none in the value; it does not
    move in evaluation.

    Shapes: A (r, in), frozen, p = int(in (k / r)) entries (at least 1) of every row, at places that were drawn, are
    N(0, 1 / r^2), the others 0; B (out, r) = 0, so the model is the pretrained one at step 0; d (r) = 0.
    Trains: r out numbers per site, of which a token uses k out. A and d are saved with them. The input is not kept for
    the backward pass, only h and what of it was chosen.
    Source: "FlyLoRA: Boosting Task Decoupling and Parameter Efficiency via Implicit Rank-Wise Mixture-of-Experts",
    2025, arXiv 2510.08396, and flylora.py of the authors' code (gfyddha/FlyLoRA), whose defaults these are; d moves as
    in its corrected release, where the first compares counts with the share k / r.
    Departures: settled here: where the two releases disagree, components are chosen by magnitude and x gets its
    gradient through A, as in flylora.py and by the paper's text; the fork of PEFT beside it chooses by sign and stops
    that gradient. d moves once a step, by all its micro-batches and processes and without padding; there in every pass.
    Advice: the authors' script has `rank: 32`, `top_k: 8`, `alpha: 64`, a learning rate of 3e-4, all linear layers. The
    change depends on the token, so it cannot be merged.
    """

    provides = {"adapters", "routed"}
    requires = {"backward"}
    skipped = False  # B is one matrix, of which every token chooses some columns
    roles = {"B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536)
        alpha: float = Field(64.0, gt=0, le=1_000_000)
        top_k: int = Field(8, gt=0, description="rank components that a token uses")
        balance: float = Field(1e-3, ge=0, description="how far d moves in a step")
        dropout: float = Field(0.0, ge=0, lt=1)

        @model_validator(mode="after")
        def _check_top_k(self) -> FlyLoRA.Config:
            if self.top_k > self.rank:
                raise ValueError(f"top_k is {self.top_k}, but the rank is {self.rank}")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.register_buffer("A", torch.empty(config.rank, site.in_features))
        self.register_buffer("d", torch.empty(config.rank))
        self.register_buffer("counts", torch.zeros(config.rank), persistent=False)
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        self.reset()

    @classmethod
    def timed(cls, config: Config) -> TimedMethod:
        return Balancing(config)

    def reset(self) -> None:
        A, config = self.get_buffer("A"), self.config
        entries = max(1, int(A.shape[1] * (config.top_k / config.rank)))
        places = torch.stack([torch.randperm(A.shape[1], device=A.device)[:entries] for _ in A])
        A.zero_().scatter_(1, places, torch.randn_like(A[:, :entries]) / config.rank)
        self.get_buffer("d").zero_()
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        h = F.linear(
            F.dropout(x, self.config.dropout, self.training).to(dtype), self.get_buffer("A").to(dtype)
        )
        with torch.no_grad():
            chosen = (h.float() + self.get_buffer("d")).abs().topk(self.config.top_k).indices
            used = torch.zeros_like(h).scatter_(-1, chosen, 1)
            if self.training and is_first_pass():
                self.get_buffer("counts").add_(self._chosen_by(x, used))
        return base(x) + F.linear(h * (self.scaling * used), self.B.to(dtype)).to(x.dtype)

    @staticmethod
    def _chosen_by(x: Tensor, used: Tensor) -> Tensor:
        """How many real tokens chose each component, (r,) float32."""
        real = real_tokens(x)
        seen = used.float() if real is None else used.float() * real[..., None]
        return seen.reshape(-1, used.shape[-1]).sum(0)

    def take_load(self) -> dict[str, Tensor]:
        return {"": self.get_buffer("counts").clone()}

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * site.out_features)


class Balancing(TimedMethod):
    """Moves every d against how often its component was chosen, once a step."""

    config: FlyLoRA.Config

    def before_step(self, run: Run) -> None:
        for adapter in _routed(run):
            adapter.get_buffer("counts").zero_()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        adapters = _routed(run)
        counts = [adapter.get_buffer("counts") for adapter in adapters]
        together = run.summed(torch.cat(counts)).split([len(count) for count in counts])
        for adapter, count in zip(adapters, together, strict=True):
            adapter.get_buffer("d").add_(torch.sign(count.mean() - count), alpha=adapter.config.balance)


def _routed(run: Run) -> list[FlyLoRA]:
    return [site.adapter for _, site in run.adapted() if isinstance(site.adapter, FlyLoRA)]
