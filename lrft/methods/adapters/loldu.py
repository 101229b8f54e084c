"""LoLDU: the leading pivots of the weight's own elimination train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.errors import RecipeError


@ADAPTERS.register
class LoLDU(LowRank):
    """Lower-diag-upper adaptation: W = P L diag(D) U, of which the first r entries of the diagonal train.

        y  = x W^T + b + s ((x U^T) * (z - z_0)) (P L)^T
        W' = W + s P L diag(z - z_0) U

    with r = `rank`, s = `alpha` / r; P L (out, r) are the first columns of the unit lower factor, its rows put back in
    the order of W, U (r, in) the first rows of the unit upper one, z_0 the first r pivots. That is the residual of the
    authors, W - s P L diag(z_0) U, plus s P L diag(z) U, with nothing taken off the base. Pivots come in the order of
    elimination and not of size. The elimination is of the weight as the base stores it, on attaching, in float64.

    Shapes: L (out, r), its entries within 1, and U (r, in), frozen; z (r) = z_0, so W' = W at step 0.
    Trains: r numbers per site. L and U are saved with them, 4 r (in + out) bytes. Only x U^T is kept for the backward
    pass, r numbers a token.
    Source: "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition", 2024, arXiv 2410.13618, and the authors'
    code (SKDDJ/LoLDU), whose defaults these are: `rank: 4`, `alpha: 1`.
    Departures: s is constant, as a trained one spans nothing that z does not (the code makes it a parameter that is not
    in its own list of what trains). z starts at the pivots; as z_0 is subtracted, the code's other starts would change
    only what weight decay pulls towards. No dropout, which the code declares and does not use.
    Advice: the published count, 18,432 for queries and values of RoBERTa-base, is that of `rank: 768`, all pivots.
    """

    provides = {"adapters", "mergeable", "linear_delta", "undivided"}
    roles = {"z": "magnitude"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(4, gt=0, le=65_536, description="pivots that train")
        alpha: float = Field(1.0, gt=0, le=1_000_000)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise ValueError(f"rank {config.rank} is more than the weight has pivots; use at most {most}")
        self.scaling = config.alpha / config.rank
        self.register_buffer("L", torch.zeros(site.out_features, config.rank))
        self.register_buffer("U", torch.zeros(config.rank, site.in_features))
        self.register_buffer("z_0", torch.zeros(config.rank))
        self.z = nn.Parameter(torch.zeros(config.rank))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.get_buffer("L").any():  # it stays what it was before a restart
            return
        try:
            L, D, U = ldu(weight, self.config.rank)
        except ValueError as error:
            raise RecipeError(f"{self.site.name}: {error}", "adapter.targets") from None
        for name, found in (("L", L), ("U", U), ("z_0", D)):
            self.get_buffer(name).copy_(found)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        self.z.copy_(self.get_buffer("z_0"))

    def branch(self) -> Branch:
        L, U, z_0 = (self.get_buffer(name) for name in ("L", "U", "z_0"))

        def form(dtype: torch.dtype, z: Tensor) -> tuple[Tensor, Tensor]:
            return U, L * (z - z_0)

        def pull(dtype: torch.dtype, dU: Tensor | None, d_up: Tensor | None, z: Tensor) -> tuple[Tensor]:
            assert d_up is not None
            return ((d_up * L).sum(0),)

        return Branch(scale=self.scaling, formed=Formed((self.z,), form, pull, trains_down=False))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank)


def ldu(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """P L (out, rank), D (rank) and U (rank, in) of the first pivots of W = P L diag(D) U, in float64.

    Raises:
        ValueError: one of them is 0, so that there is no unit upper factor.
    """
    packed, pivots, _ = torch.linalg.lu_factor_ex(weight.double())
    D, least = packed.diagonal()[:rank], torch.finfo(torch.float64).eps * weight.abs().max()
    if not (D.abs() > least).all():
        first = int((D.abs() <= least).nonzero()[0])
        remedy = "leave the layer out, or use a lower rank" if first else "leave the layer out"
        raise ValueError(f"pivot {first + 1} of the weight is 0, so it has no such factors; {remedy}")
    rows = list(range(len(weight)))  # P as an order: row i of L stands for row rows[i] of W
    for place, swapped in enumerate(pivots.tolist()):
        rows[place], rows[swapped - 1] = rows[swapped - 1], rows[place]
    L = torch.empty_like(packed[:, :rank])
    L[rows] = packed[:, :rank].tril(-1) + torch.eye(len(weight), rank).to(packed)
    U = packed[:rank].triu() / D[:, None]
    return L, D, U
