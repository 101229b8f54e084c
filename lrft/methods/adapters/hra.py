"""HRA: the inputs of a layer go through a chain of Householder reflections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.frozen_product import frozen_product
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator
from lrft.registry.json import Json


def hra_form_keys(config: HRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {"peft_type": "HRA", "r": config.rank, "apply_GS": False}


@ADAPTERS.register
class HRA(Adapter):
    """Householder reflection adaptation: the weight times a chain of r reflections of its inputs.

        W' = W H_1 ... H_r,  H_i = I - 2 v_i v_i^T / |v_i|^2
           = W - (W K) V^T,  k_i = 2 H_1 ... H_(i-1) v_i
        y  = x W^T + b - (x V) (W K)^T
        loss + `orthogonality` sum over sites |I - V^T V|_F

    with r = `rank`, an even number; in the second to fourth line the columns v_i of V are divided by their lengths. K =
    V T, where the inverse of T is the strict upper triangle of V^T V with 1/2 on the diagonal. A pair of reflections is
    computed by v_1, v_2 - v_1 and k_1 + k_2, k_2, so that two that are almost equal are not rounded to nothing.

    Shapes: V (in, r) ~ U(-1/sqrt(r/2), 1/sqrt(r/2)), its columns in equal pairs, two of which are no change, so W' = W
    at step 0; K (in, r).
    Trains: r in numbers per site. Rows of W keep their norms and their angles; the change has rank at most r. x and r
    numbers a token are kept for the backward pass, and W K is a product with r more tokens.
    Source: Yuan, Liu and Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
    Adaptation", NeurIPS 2024, arXiv 2405.17484; checked against PEFT's layer, which is the authors' (their LLaMA code
    reflects the outputs). Penalty and its weight: the authors' LLaMA code, a norm that is not squared.
    Departures: no strict orthogonality by Gram-Schmidt (`apply_GS` of PEFT): it has no start at which W' = W, as its
    vectors are never equal. PEFT itself has no penalty: `orthogonality: 0`.
    """

    aliases = {"householder householder_reflection": "adapter: hra"}
    provides = {"adapters", "mergeable"}
    roles = {"V": "core"}
    peft = PeftForm(hra_form_keys, names={"V": "hra_u"}, transposed=False)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536, description="reflections, an even number")
        orthogonality: float = Field(
            1e-4, ge=0, description="weight of the penalty on reflections that are not orthogonal"
        )

        @model_validator(mode="after")
        def _check_rank(self) -> HRA.Config:
            if self.rank % 2:
                raise ValueError(
                    f"rank {self.rank} is odd, and reflections start in equal pairs; use {self.rank + 1}"
                )
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.rank > site.in_features:
            raise ValueError(f"rank {config.rank} is more than the inputs; use at most {site.in_features}")
        self.V = nn.Parameter(torch.empty(site.in_features, config.rank))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        half = self.V[:, ::2].contiguous()
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.V.copy_(half.repeat_interleave(2, dim=1))

    def delta_weight(self, weight: Tensor) -> Tensor:
        down, K = self.terms()
        return -(weight.float() @ K @ down).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        down, K = self.terms()
        weight = base.weight()
        branch = Branch(down, frozen_product(K, base, weight), -1.0)
        return branch_linear(x, base, branch, dtype=self.compute_dtype, weight=weight)

    def penalty(self) -> Tensor | None:
        if not self.config.orthogonality:
            return None
        V = self._units()
        apart: Tensor = (torch.eye(V.shape[1], device=V.device) - V.mT @ V).norm()
        return self.config.orthogonality * apart

    def terms(self) -> tuple[Tensor, Tensor]:
        """(r, in) and (in, r) whose product is K V^T transposed, pairs of reflections combined."""
        V = self._units()
        inverse = (V.mT @ V).triu(1) + torch.eye(V.shape[1], device=V.device) / 2
        K = torch.linalg.solve_triangular(inverse, V, upper=True, left=False)
        v1, v2, k1, k2 = V[:, ::2], V[:, 1::2], K[:, ::2], K[:, 1::2]
        return torch.cat([v1, v2 - v1], dim=1).mT, torch.cat([k1 + k2, k2], dim=1)

    def _units(self) -> Tensor:
        units: Tensor = self.V / self.V.norm(dim=0)
        return units

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return config.rank * site.in_features
