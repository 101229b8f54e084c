"""PELA's layers: a low-rank product in the place of a pretrained weight, which stays beside it as the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.linalg import truncated_svd
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, SVDIterations


@ADAPTERS.register
class PELA(Adapter):
    """Low-rank approximation of a pretrained model: every weight becomes the product of two factors, which train.

        y  = (x Q^T) P^T + b
        W' = P Q,    P = U_r S_r^1/2,  Q = S_r^1/2 V_r^T  at step 0,    r = floor(in out / (c (in + out)))

    with c = `compress`, U_r S_r V_r^T the r leading singular triplets of W as it is stored. W takes no part in y: it is
    the teacher's, for `objective: pela` and for whatever asks for the base model.

    Shapes: P (out, r) is named B, Q (r, in) is named A. At step 0 W' is W's best approximation of rank r, and not W.
    Trains: r (in + out) numbers per site, at most in out / c. W stays in memory, as `quantization` stores it.
    Source: Guo et al., "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", CVPR 2024, arXiv
    2310.10700, and the authors' code: c = 3 in its vision-language model, 2 and 1.5 in its vision ones.
    Departures: made for vision, carried to the linear layers of a language model; head and embeddings stay. Norms and
    biases train where `trainable` names them; the authors train all that is left.
    Advice: train with `objective: pela` on general text first, then on the task with `model.adapter: RUN` and
    `objective: cross_entropy`; `lrft merge --factors` writes P and Q as two layers.
    """

    aliases = {
        "low_rank_approximation": "adapter: pela\nobjective: pela",
    }
    provides = {"adapters", "mergeable", "moved_start", "factor_product", "stands_for_weight"}
    requires = {"one_stage"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        compress: float = Field(
            3.0, ge=1, le=65_536, description="each weight keeps at most 1 / this of its numbers"
        )
        niter: SVDIterations = Field(
            None,
            description="subspace iterations of a randomised SVD, or exact; by default exact for small layers",
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if not (rank := rank_of(config, site)):
            shape = f"{site.out_features} x {site.in_features}"
            raise ValueError(
                f"compress {config.compress:g} leaves no rank of {shape}; write less, or exclude it"
            )
        self.A = nn.Parameter(torch.zeros(rank, site.in_features))
        self.B = nn.Parameter(torch.zeros(site.out_features, rank))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        U, S, Vh = truncated_svd(weight, self.A.shape[0], niter=self.config.niter)
        self.A.copy_(S.sqrt()[:, None] * Vh)
        self.B.copy_(U * S.sqrt())

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.B @ self.A - weight.float()).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        y = branch_linear(x, None, Branch(self.A, self.B, 1.0), dtype=self.compute_dtype)
        return y if base.bias is None else y + base.bias

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return rank_of(config, site) * (site.in_features + site.out_features)


def rank_of(config: PELA.Config, site: Site) -> int:
    """The highest rank whose factors are at most a share of the weight's numbers."""
    return int(
        site.in_features * site.out_features / (config.compress * (site.in_features + site.out_features))
    )
