"""LoRA-LEGO: rank components of all parents, clustered."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts
from lrft.methods.combine._kmeans import kmeans
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, Literal, MethodConfig
from lrft.registry.errors import UsageError


@COMBINATIONS.register
class LEGO(Combination):
    """Take the parents apart into rank components, cluster these, and build the result of the centres.

        u_j = [a_j; b_j],  delta_t = sum_j b_j a_j^T            every rank component of every parent is a unit
        c_i = mean of cluster i of k-means over all units       i = 1 ... k
        c'_i = c_i * mean_{j in i} |u_j| / |c_i|                parameter reweighting: a mean is shorter than units
        delta = sqrt(r / k) * sum_i b'_i a'_i^T,  c'_i = [a'_i; b'_i]    output reweighting: more terms, more variance

    with r the mean of the parents' ranks, k `rank` or by default the highest of them, both at the layer, and the scale
    of a parent in a and b alike. `reweight: parameters`, `output` or `none` leaves the others out. One parent alone
    is pruned to fewer components. With k the number of units and no reweighting it is the sum of the changes, `cat`
    with weights 1.

    Shapes: A (k, in), B (out, k); `starts` k-means++ starts drawn from `--seed`, Lloyd's iteration in float64.
    Takes: one or more with factors, of any ranks; no weights, as units of all parents count alike.
    Source: Zhao et al., "Merging LoRAs like Playing LEGO", ICLR 2025, arXiv 2409.16167. No code of the authors was
    found; the two reweightings are those that public descriptions of the paper agree on, and a test has the whole again
    in numpy from the same first centres.
    Departures: settled here: norms are of whole units, and r of parents that differ is their mean. (c b, a / c) and
    (-b, -a) are the same component as (b, a) and other points for k-means; `balance: true` makes |a| = |b| before, and
    of the sign, as there, nothing is made.
    """

    least = 1
    weighs = "none"

    config: Config

    class Config(MethodConfig):
        rank: int | None = Field(None, gt=0, le=65_536)
        reweight: Literal["both", "parameters", "output", "none"] = "both"
        balance: bool = Field(False, description="give both halves of a unit one length before clustering")
        starts: int = Field(10, gt=0, le=1000)

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        if any(part.dense is not None for part in parts):
            raise UsageError(f"--method lego: a parent has no factors at {site}; cat, svd and ties take any")
        A, B, ranks = units(parts, self.config.balance)
        k = min(self.config.rank or max(ranks, default=0), len(A))
        if k == 0:
            return A, B.mT
        merged = cluster(torch.cat([A, B], dim=1), k, self.seed, self.config.starts, self.config.reweight)
        if self.config.reweight in ("both", "output"):
            merged = merged * (sum(ranks) / len(ranks) / k) ** 0.25  # in both halves: the root of the root
        return merged[:, : A.shape[1]].contiguous(), merged[:, A.shape[1] :].mT.contiguous()


def units(parts: Parts, balance: bool = False) -> tuple[Tensor, Tensor, list[int]]:
    """Halves a (n, in) and b (n, out) of all units, and the rank of every parent that has some."""
    pairs = [part.factors() for part in parts]
    A, B = torch.cat([A for A, _ in pairs]), torch.cat([B.mT for _, B in pairs])
    if balance:
        a, b = A.norm(dim=1, keepdim=True), B.norm(dim=1, keepdim=True)
        root = torch.where((a > 0) & (b > 0), (b / a.clamp(min=1e-30)).sqrt(), 1.0)
        A, B = A * root, B / root
    return A, B, [part.rank for part in parts if part.rank]


def cluster(points: Tensor, k: int, seed: int = 0, starts: int = 10, reweight: str = "both") -> Tensor:
    """Centres (k, d) of the units (n, d), at the mean length of their members where `reweight` says so."""
    of = kmeans(points, k, seed, starts)
    centres = torch.stack([points[of == i].mean(0) for i in range(k)])
    if reweight not in ("both", "parameters"):
        return centres
    lengths = torch.stack([points[of == i].norm(dim=1).mean() for i in range(k)])
    own = centres.norm(dim=1)
    return centres * torch.where(own > 0, lengths / own.clamp(min=1e-30), 0.0)[:, None]
