"""Low-rank training from scratch: a product of two factors in the place of each weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.linalg import truncated_svd
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal


@ADAPTERS.register
class Factorized(Adapter):
    """Factorised layers: the weight is a low-rank product from the first step to the last, and no other is kept.

        y  = s (x A^T) B^T + b
        W' = s B A

        sqrt(s) B = U_r S_r^1/2,  sqrt(s) A = S_r^1/2 V_r^T      at step 0 with `start: spectral`

    with r = `rank`, s = `alpha` / r, 1 unless `alpha` is set; U_r S_r V_r^T the r leading singular triplets of W, the
    random weight that stood there, so s B A is its best approximation of rank r. With `start: kaiming`
    A ~ U(-1/sqrt(in), 1/sqrt(in)) and B ~ U(-1/sqrt(r), 1/sqrt(r)).

    Shapes: A (r, in), B (out, r), neither 0 at step 0. W' is not W at step 0: what a pretrained weight knew beyond rank
    r is lost.
    Trains: r (in + out) numbers per site; the weight that stood there takes no memory.
    Source: Kamalakara et al., "Exploring Low Rank Training of Deep Neural Networks", 2022, arXiv 2209.13569; the
    baseline "low rank" of GaLore's Table 2. `start: kaiming` with alpha 32 is that of Memory_Efficient_Pretraining
    (code).
    Departures: none; weight decay of the product (Frobenius decay) is not here.
    """

    provides = {"adapters", "mergeable", "own_weights", "moved_start", "factor_product"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(128, gt=0, le=65_536)
        alpha: float | None = Field(
            None, gt=0, le=1_000_000, description="by default the rank, so that s = 1"
        )
        start: Literal["spectral", "kaiming"] = "spectral"

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise ValueError(f"rank {config.rank} is more than the weight can have; use at most {most}")
        self.scaling = 1.0 if config.alpha is None else config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(config.rank, site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        for factor in (self.A, self.B):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.config.start == "spectral":
            U, S, Vh = truncated_svd(weight.float(), self.config.rank)
            root = (S / self.scaling).sqrt()
            self.A.copy_(root[:, None] * Vh)
            self.B.copy_(U * root)

    def own_weight(self) -> Tensor:
        """The weight that this is, (out, in) float32."""
        return self.scaling * self.B @ self.A

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.own_weight() - weight.float()).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        y = branch_linear(x, None, Branch(self.A, self.B, self.scaling), dtype=self.compute_dtype)
        return y if base.bias is None else y + base.bias

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))
