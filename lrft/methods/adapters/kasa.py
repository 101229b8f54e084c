"""KaSA: the smallest singular directions of the weight make room for a change in the form of an SVD."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Additive, Branch, Factors, PeftForm, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.peft import LORA_NAMES, lora_keys
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


class SiteCount(Shared):
    """How many sites there are, over which the penalty is a mean."""

    def __init__(self, many: int) -> None:
        super().__init__()
        self.many = many

    def peft_tensors(self) -> dict[str, Tensor]:
        return {}


def kasa_form_keys(config: KaSA.Config, with_start: bool) -> dict[str, Json]:
    """LoRA's keys and those of PEFT's variant."""
    weights: dict[str, Json] = {"beta": config.beta, "gamma": config.gamma}
    return {**lora_keys(config.rank, config.alpha, config.dropout), "kasa_config": weights}


def kasa_form_tensors(adapter: KaSA, start: KaSA | None) -> dict[str, Tensor]:
    """What trains; PEFT takes the minor part off the weight itself."""
    own: dict[str, Tensor] = adapter.state_dict()
    return {name: own[name] for name in ("A", "B", "sigma")}


@ADAPTERS.register
class KaSA(Additive):
    """Knowledge-aware singular-value adaptation: minor directions of W go, a change in the form of an SVD comes.

        W' = W - W_minor + s B diag(sigma) A
        y  = x W^T + b - x W_minor^T + s ((drop(x) A^T) * sigma) B^T
        loss + mean over sites of [ `beta` |sigma|^2 + `gamma` (|B^T B - I|_F + |A A^T - I|_F) ]

    with r = `rank`, s = `alpha` / r, W_minor the sum of the r smallest of the min(in, out) singular triples of W as the
    base stores it; drop is dropout of probability `dropout`. W_minor is found by the eigenvectors of the smaller of
    W W^T and W^T W in float64, and kept as two frozen factors beside the weight, which is not written to.

    Shapes: A (r, in) as in `lora`, B (out, r) = 0, sigma (r) ~ N(0, 1), so the model at step 0 is that of W - W_minor.
    W_minor = E D with D (r, in), E (out, r), saved beside them. A restart, which moves the whole change into the base,
    takes no further directions off it.
    Trains: r (in + out) + r numbers per site.
    Source: Wang et al., "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models", ICLR 2025, arXiv
    2412.06071, and the authors' code (juyongjiang/KaSA), where the two weights are those here; checked against PEFT's
    variant of LoRA. Settled here: the penalty is a mean over the sites as in the authors' code (PEFT adds the sites up,
    and leaves it to the caller to train with it); its matrices are those of side r, as the paper's equation is read in
    PEFT (the code has those of sides in and out, which differ under the root by in - r and out - r); what goes are the
    last r of min(in, out) triples as in PEFT (the code keeps the first in - r: of a W with in >= out + r all of them).
    Departures: none in the function.
    Advice: all singular directions of every weight are found whenever a run is opened; on a CPU that is slow for large
    layers, and takes eight times as long for twice the side.
    """

    aliases = {"knowledge_aware_singular_value_adaptation": "adapter: kasa"}
    provides = {"adapters", "mergeable", "linear_delta", "undivided", "moved_start"}
    roles = {"A": "lora_A", "sigma": "core", "B": "lora_B"}
    peft = PeftForm(
        kasa_form_keys,
        kasa_form_tensors,
        names={**LORA_NAMES, "sigma": "lora_diag"},
        transposed=False,
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(
            8, gt=0, le=65_536, description="of the change, and singular directions that are taken off W"
        )
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        dropout: float = Field(0.0, ge=0, lt=1)
        beta: float = Field(1e-4, ge=0, description="weight of the penalty on the squares of sigma")
        gamma: float = Field(
            1e-3, ge=0, description="weight of the penalty on factors that are not orthonormal"
        )

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return SiteCount(len(sites))

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> KaSA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        r, most = config.rank, min(site.in_features, site.out_features) - 1
        if r > most:
            raise ValueError(f"rank {r} leaves no singular direction of the weight; use at most {most}")
        self.scaling = config.alpha / r
        self.many = shared.many if isinstance(shared, SiteCount) else 1
        self.A = nn.Parameter(torch.empty(r, site.in_features))
        self.sigma = nn.Parameter(torch.empty(r))
        self.B = nn.Parameter(torch.empty(site.out_features, r))
        self.register_buffer("D", torch.zeros(r, site.in_features))
        self.register_buffer("E", torch.zeros(site.out_features, r))
        self.taken = False
        self.reset()

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.normal_(self.sigma)
        nn.init.zeros_(self.B)
        for name in "DE":
            self.get_buffer(name).zero_()

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.taken:  # a restart brings the weight that was trained, of which nothing is minor
            return
        for name, factor in zip("DE", minor_part(weight, self.config.rank), strict=True):
            self.get_buffer(name).copy_(factor)
        self.taken = True

    def change(self) -> Tensor:
        return self._trained().dense() - self.get_buffer("E") @ self.get_buffer("D")

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype, training = self.compute_dtype, self.training
        return branch_linear(x, base, self._trained(), dtype=dtype, training=training) - self._minor(x)

    def update(self, x: Tensor) -> Tensor:
        return branch_linear(x, None, self._trained(), dtype=self.compute_dtype) - self._minor(x)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        """Both parts side by side, of rank 2 r."""
        assert start is None, "nothing is a start of this change"
        A, B = self._trained().pair()
        return torch.cat([A, self.get_buffer("D")]), torch.cat(
            [self.scaling * B, -self.get_buffer("E")], dim=1
        )

    def penalty(self) -> Tensor:
        eye = torch.eye(len(self.A), device=self.A.device)
        apart = (self.B.mT @ self.B - eye).norm() + (self.A @ self.A.mT - eye).norm()
        total: Tensor = self.config.beta * self.sigma.square().sum() + self.config.gamma * apart
        return total / self.many

    def _trained(self) -> Branch:
        return Branch(self.sigma[:, None] * self.A, self.B, self.scaling, dropout=self.config.dropout)

    def _minor(self, x: Tensor) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        D, E = (self.get_buffer(name).to(dtype) for name in "DE")
        return F.linear(F.linear(x.to(dtype), D), E).to(x.dtype)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return config.rank * (site.in_features + site.out_features + 1)


def minor_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """D (rank, in) and E (out, rank) in float32: E D is the sum of the smallest singular triples of (out, in)."""
    dense = weight.double()
    wide = dense.shape[0] <= dense.shape[1]
    _, vectors = torch.linalg.eigh(dense @ dense.mT if wide else dense.mT @ dense)  # values ascend
    found = vectors[:, :rank]
    D, E = (found.mT @ dense, found) if wide else (found.mT, dense @ found)
    return D.float(), E.float()
