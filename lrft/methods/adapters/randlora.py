"""RandLoRA: a full-rank update as a sum of frozen random bases, scaled by trained diagonals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.shared import kept_apart
from lrft.methods.adapters._bases import Bases, widest
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal
from lrft.registry.json import Json


def randlora_form_keys(config: RandLoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "RANDLORA",
        "r": config.rank,
        "randlora_alpha": config.rank,
        "randlora_dropout": config.dropout,
        "sparse": config.bases == "sparse",
        "very_sparse": config.bases == "very_sparse",
    }


def randlora_form_tensors(adapter: RandLoRA, start: RandLoRA | None) -> dict[str, Tensor]:
    """The scale goes into Lambda: PEFT has one for all sites, ours depends on their size."""
    return {"Lambda": adapter.scaling * adapter.Lambda.detach(), "Gamma": adapter.Gamma.detach()}


@ADAPTERS.register
class RandLoRA(LowRank):
    """Full-rank adaptation by random bases: n products of rank r are summed, and only their diagonals train.

        M  = s sum_j B_j diag(l_j) A diag(g_j),  j = 1 ... n,  n = ceil(small / r)
        W' = W + M      where out >= in
        W' = W + M^T    where in > out, so that the diagonals g_j act on the small side
        y  = x W^T + b + drop(x) (W' - W)^T

    with small = min(in, out), large = max(in, out), r = `rank`, s = `alpha` / (r sqrt(n)), or `alpha` / r with
    `sqrt_bases: false`, as in PEFT; `alpha` = 2 r unless it is set. l_j is column j of Lambda, g_j row j of Gamma. drop
    is dropout of probability `dropout`. A and all B_j are random, frozen, and cut from matrices that all sites share;
    their entries have unit variance: uniform with `bases: dense`, from {-1, 0, 1} with 2/3 zeros with `sparse`, all but
    1 in sqrt(small) zeros with `very_sparse` (small there of the widest sites).

    Shapes: A (r, small), B_j (large, r); Lambda (r, n) = 0, Gamma (n, small) = 1 / max(n, small), so W' = W at step 0.
    Trains: n (r + small) numbers per site, the fewer the larger r is. The change has rank `small`. The scaled bases are
    formed in the forward pass and again in the backward pass, never kept. Its term is of rank n r, `small` or a little
    more: of a square W a step takes twice as many multiplications for it as with W.
    Source: Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", 2025, arXiv
    2502.00987; start, scale and pairing checked against the authors' code and PEFT's layer.
    Departures: none. As in the authors' code, component i of term j takes column i n + j of the B_j side by side, which
    is the sum above with the random columns named otherwise; bases are rounded to bfloat16 once, as PEFT draws them.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"Lambda": "core", "Gamma": "core"}
    peft = PeftForm(
        randlora_form_keys,
        randlora_form_tensors,
        names={"Lambda": "randlora_lambda", "Gamma": "randlora_gamma"},
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(
            32, gt=0, description="rank of each random product; a larger one trains fewer numbers"
        )
        alpha: float | None = Field(None, gt=0, le=1_000_000, description="by default twice the rank")
        sqrt_bases: bool = Field(
            True,
            description="divide the scale by the square root of the number of products too (PEFT does not)",
        )
        bases: Literal["dense", "sparse", "very_sparse"] = "dense"
        dropout: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """Bases for the widest sites; every other site uses a corner of them."""
        small, large = sorted(widest(sites.values()))
        shapes = {"A": (config.rank, 1, small), "B": (large, terms(small, config.rank), config.rank)}
        return Bases(
            "randlora_", **{name: _draw(shape, config.bases, small) for name, shape in shapes.items()}
        )

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> RandLoRA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        small = min(site.in_features, site.out_features)
        if config.rank > small:
            raise ValueError(f"rank {config.rank} is more than the smaller side; use at most {small}")
        n = terms(small, config.rank)
        alpha = 2 * config.rank if config.alpha is None else config.alpha
        self.scaling = alpha / config.rank / (math.sqrt(n) if config.sqrt_bases else 1)
        self.bases = kept_apart(shared, Bases, lambda: self.shared(config, {site.name: site}, 0))
        self.Lambda = nn.Parameter(torch.empty(config.rank, n))
        self.Gamma = nn.Parameter(torch.empty(n, small))
        self.reset()

    def reset(self) -> None:
        nn.init.zeros_(self.Lambda)
        nn.init.constant_(self.Gamma, 1 / max(self.Gamma.shape))

    def branch(self) -> Branch:
        """A (n r, in) scaled and B (out, n r) as drawn, or the other way round where `in` is the large side."""
        tall = self.site.in_features <= self.site.out_features
        small, large = sorted((self.site.in_features, self.site.out_features))
        n, (shared,) = len(self.Gamma), self.bases

        def base(dtype: torch.dtype) -> Tensor:
            return shared.cast("A", dtype)[:, :, :small]  # (r, 1, small)

        def form(dtype: torch.dtype, Lambda: Tensor, Gamma: Tensor) -> tuple[Tensor, Tensor]:
            drawn = shared.cast("B", dtype)[:large, :n].flatten(1)  # (large, n r)
            scaled = (Lambda[:, :, None] * base(dtype) * Gamma).flatten(0, 1).to(dtype)  # (r n, small)
            return (scaled, drawn) if tall else (drawn.mT, scaled.mT)

        def pull(
            dtype: torch.dtype, dA: Tensor | None, dB: Tensor | None, Lambda: Tensor, Gamma: Tensor
        ) -> tuple[Tensor, Tensor]:
            down = dA if dB is None else dB.mT
            assert down is not None
            turned = down.reshape(*Lambda.shape, small) * base(dtype)
            return (turned * Gamma).sum(dim=2), (turned * Lambda[:, :, None]).sum(dim=0)

        formed = Formed((self.Lambda, self.Gamma), form, pull, trains_down=tall, trains_up=not tall)
        return Branch(scale=self.scaling, dropout=self.config.dropout, formed=formed)

    def branch_since(self, start: LowRank) -> Branch:
        """Both sums side by side: they share one factor, but not which of the two."""
        (A, B), (A0, B0) = self.branch().pair(), start.branch().pair()
        return Branch(torch.cat([A, A0]), torch.cat([B, -B0], dim=1), self.scaling)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        small = min(site.in_features, site.out_features)
        return int(terms(small, config.rank) * (config.rank + small))


def terms(small: int, rank: int) -> int:
    """How many products of that rank it takes to fill the smaller side."""
    return -(-small // rank)


def _draw(shape: tuple[int, ...], kind: str, small: int) -> Tensor:
    """Entries of unit variance over the whole matrix, in bfloat16."""
    uniform = torch.rand(shape) * 2 - 1
    if kind != "dense":
        kept = 1 / 3 if kind == "sparse" else 1 / math.sqrt(small)
        uniform = torch.where(uniform.abs() > 1 - kept, uniform.sign(), 0.0)
    return (uniform / uniform.std()).to(torch.bfloat16)
