"""GraLoRA: a grid of small low-rank updates in place of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Additive, Factors, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.blocks import blocks_linear, blocks_update
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator
from lrft.registry.json import Json


def gralora_form_keys(config: GraLoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "GRALORA",
        "r": config.rank,
        "alpha": config.alpha,
        "gralora_dropout": config.dropout,
        "gralora_k": config.blocks,
        "hybrid_r": config.hybrid_rank,
    }


def gralora_form_tensors(adapter: GraLoRA, start: GraLoRA | None) -> dict[str, Tensor]:
    """PEFT stores the grid's factors transposed."""
    own: dict[str, Tensor] = adapter.state_dict()
    return own | {"A": own["A"].mT, "B": own["B"].mT}


@ADAPTERS.register
class GraLoRA(Additive):
    """Granular low-rank adaptation: the weight is a grid of k x k blocks, each with an update of rank r / k.

        W'_jn = W_jn + s B_j[:, slice n] A_n[slice j]      block in row j, column n of the grid, j, n = 1 ... k
        W'   += s Bh Ah                                    with `hybrid_rank` > 0, over the whole weight
        y     = x W^T + b + drop(x) (W' - W)^T

    with k = `blocks`, r = `rank`, h = `hybrid_rank`, s = `alpha` / (r + h); slice n is the n-th run of r / k of the r
    components. All blocks of column n share A_n, all blocks of row j share B_j. The dropout, of probability `dropout`,
    acts on the input; the hybrid part draws its own. k divides r, in and out.

    Shapes: A (k, r, in / k) ~ U(-1/sqrt(in/k), 1/sqrt(in/k)), one A_n (r, in / k) for each block column; B (k, out / k,
    r) = 0, one B_j for each block row; Ah (h, in) as the A of `lora`, Bh (out, h) = 0; so W' = W at step 0.
    Trains: (r + h) (in + out) numbers per site whatever k is; the change has rank up to k r + h. k = 1 is LoRA.
    Source: Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", 2025, arXiv
    2505.20355; formula, start and scale checked against PEFT's layer, which is the authors' port. Their own fork counts
    the hybrid part within the rank (r16 with 8 of it hybrid is rank: 8, hybrid_rank: 8 here and in PEFT).
    Departures: none.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B", "Ah": "lora_A", "Bh": "lora_B"}
    peft = PeftForm(
        gralora_form_keys,
        gralora_form_tensors,
        names={
            "A": "gralora_A",
            "B": "gralora_B",
            "Ah": "gralora_A_general.weight",
            "Bh": "gralora_B_general.weight",
        },
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536)
        alpha: float = Field(64.0, gt=0, le=1_000_000)
        blocks: int = Field(
            2, gt=0, description="k: the grid has k x k blocks; k divides rank, inputs, outputs"
        )
        hybrid_rank: int = Field(
            0, ge=0, le=65_536, description="rank of a LoRA over the whole weight beside the grid"
        )
        dropout: float = Field(0.0, ge=0, lt=1)

        @model_validator(mode="after")
        def _check_blocks(self) -> GraLoRA.Config:
            if self.rank % self.blocks:
                raise ValueError(f"blocks is {self.blocks}, which does not divide the rank {self.rank}")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        k, out, width = config.blocks, site.out_features, site.in_features
        for kind, size in (("inputs", width), ("outputs", out)):
            if size % k:
                raise ValueError(f"blocks is {k}, which does not divide the {size} {kind}; use a divisor")
        self.scaling = config.alpha / (config.rank + config.hybrid_rank)
        self.A = nn.Parameter(torch.empty(k, config.rank, width // k))
        self.B = nn.Parameter(torch.empty(k, out // k, config.rank))
        self.Ah = nn.Parameter(torch.empty(config.hybrid_rank, width)) if config.hybrid_rank else None
        self.Bh = nn.Parameter(torch.empty(out, config.hybrid_rank)) if config.hybrid_rank else None
        self.reset()

    def reset(self) -> None:
        for grid in self.A:
            nn.init.kaiming_uniform_(grid, a=math.sqrt(5))
        nn.init.zeros_(self.B)
        if self.Ah is not None and self.Bh is not None:
            nn.init.kaiming_uniform_(self.Ah, a=math.sqrt(5))
            nn.init.zeros_(self.Bh)

    def change(self) -> Tensor:
        k = self.config.blocks
        A = self.A.unflatten(1, (k, -1))  # (n, j, r / k, in / k)
        B = self.B.unflatten(2, (k, -1))  # (j, out / k, n, r / k)
        change = torch.einsum("jonr,njri->joni", B, A).reshape(self.site.out_features, self.site.in_features)
        if self.Ah is not None and self.Bh is not None:
            change = change + self.Bh @ self.Ah
        return self.scaling * change

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        t = self._exchanged(self._dropped(x).to(dtype))
        y = blocks_linear(x, base, t, self.B, self.scaling, dtype=dtype)
        return y if self.Ah is None else y + self._whole(self._dropped(x).to(dtype)).to(x.dtype)

    def update(self, x: Tensor) -> Tensor:
        seen = x.to(self.compute_dtype or x.dtype)
        grid = blocks_update(self._exchanged(seen), self.B, self.scaling)
        return (grid if self.Ah is None else grid + self._whole(seen)).to(x.dtype)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def _exchanged(self, x: Tensor) -> Tensor:
        """What goes into each block row: (..., in) -> (..., j, r), components n and j swapped."""
        k = self.config.blocks
        h = torch.einsum("...ni,nri->...nr", x.unflatten(-1, (k, -1)), self.A.to(x.dtype))
        grid: Tensor = h.unflatten(-1, (k, -1))
        return grid.transpose(-3, -2).flatten(-2)

    def _whole(self, x: Tensor) -> Tensor:
        assert self.Ah is not None and self.Bh is not None
        return self.scaling * F.linear(F.linear(x, self.Ah.to(x.dtype)), self.Bh.to(x.dtype))

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        """The blocks side by side, each component with its own rows and columns: k r + h of them."""
        if start is not None:
            assert isinstance(start, GraLoRA)
            (A, B), (A0, B0) = self.factors(), start.factors()
            return torch.cat([A, A0]), torch.cat([B, -B0], dim=1)
        k, r = self.config.blocks, self.config.rank
        part, out, width = r // k, self.site.out_features, self.site.in_features
        A = self.A.new_zeros(k, k, part, k, width // k)  # j, n, component, block column, input
        B = self.B.new_zeros(k, out // k, k, k, part)  # block row, output, j, n, component
        for j in range(k):
            for n in range(k):
                A[j, n, :, n] = self.A[n].unflatten(0, (k, part))[j]
                B[j, :, j, n] = self.B[j].unflatten(1, (k, part))[:, n]
        A, B = A.reshape(k * r, width), B.reshape(out, k * r)
        if self.Ah is not None and self.Bh is not None:
            A, B = torch.cat([A, self.Ah]), torch.cat([B, self.Bh], dim=1)
        return A.float(), self.scaling * B.float()

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int((config.rank + config.hybrid_rank) * (site.in_features + site.out_features))
