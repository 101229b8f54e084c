"""SVD-LoRA: a low-rank update with a singular value of its own for every component."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Branch
from lrft.core.elastic import ELASTIC_FORM, Elastic
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.dense_matmul import dense_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal

EPSILON = 1e-5  # beside the rank in the published scale

Regularizer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A (capacity, in), B (out, capacity) and the mask (capacity,) -> a scalar added to the loss."""


@ADAPTERS.register
class SVDLoRA(Elastic):
    """LoRA in the form of a singular value decomposition, whose rank can change while it trains.

        y  = x W^T + b + c ((drop(x) A^T) * E) B^T
        W' = W + c B diag(E) A

    with r = `rank`, the capacity: an allocator prunes components by E = 0, or reveals them one by one.
    c = `alpha` / (r + 1e-5) with `draw: normal`, else `alpha` / r; drop is dropout of probability `dropout`. E is
    multiplied by the buffers `mask` (0 for a hidden component) and `gain`, which makes c that of another rank; both are
    1 at step 0 unless an allocator sets them.

    Shapes: with `draw: normal` A (r, in), B (out, r) ~ N(0, 0.02^2); with `draw: kaiming` A ~ U(-sqrt(6 / in),
    sqrt(6 / in)), B ~ U(-sqrt(6 / r), sqrt(6 / r)); with `draw: orthonormal` A A^T = B^T B = I, at random; without
    `draw` as the allocation was published, and alone as with `draw: normal`. E (r) = 0, so W' = W at step 0.
    Trains: r (in + out) + r numbers per site. `mask` and `gain` (r + 1 numbers) are saved. Exported as a plain LoRA of
    the components with E != 0, c and E multiplied into B.
    Source: Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv 2303.10512, and
    the authors' code; `draw: kaiming`: Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank
    Distribution", 2024, arXiv 2405.17357; `draw: orthonormal`: the authors' code of AirLLM (see `allocate: airllm`).
    Departures: none in the function. Orthogonality is asked for by the allocator: alone, this is a plain LoRA with E.
    Advice: with `draw: normal` it leaves its start slowly, as published. Adam moves a number by about the rate lr a
    step, so t steps make |W' - W| about c t lr 0.02^2 sqrt(r in out), as only E counts while it is near 0; B of `lora`
    makes s t lr sqrt(r out / 3). At equal c and s that is less by 0.02^2 sqrt(3 in), 1/60 at 576 inputs and 1/22 at
    4096, for PEFT's layer too. Dozens of steps do nothing; the authors' runs have thousands, at rates of 5e-4.
    """

    provides = {"adapters", "mergeable", "linear_delta", "elastic"}
    roles = {"A": "lora_A", "E": "core", "B": "lora_B"}
    peft = ELASTIC_FORM

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(12, gt=0, le=65_536, description="the capacity: no allocator can give a site more")
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        dropout: float = Field(0.0, ge=0, lt=1)
        draw: Literal["normal", "kaiming", "orthonormal"] | None = Field(
            None,
            description="distribution of A and B at step 0; by default what the allocation was published with",
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = self.scaling_at(config.rank)
        self.A = nn.Parameter(torch.empty(config.rank, site.in_features))
        self.E = nn.Parameter(torch.empty(config.rank))
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        self.register_buffer("mask", torch.ones(config.rank))
        self.gain: Tensor
        self.register_buffer("gain", torch.ones(()))
        self.regularizer: Regularizer | None = None
        self.watch = False
        self._gradient: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Draw A and B anew and set E to 0; what is shown, and the scale, stay as they are."""
        if self.config.draw == "kaiming":
            nn.init.kaiming_uniform_(self.A)
            nn.init.kaiming_uniform_(self.B)
        elif self.config.draw == "orthonormal":
            if self.config.rank > (most := min(self.site.in_features, self.site.out_features)):
                raise ValueError(
                    f"no {self.config.rank} rows are orthonormal there; use a rank of at most {most}"
                )
            nn.init.orthogonal_(self.A)
            nn.init.orthogonal_(self.B)
        else:
            nn.init.normal_(self.A, std=0.02)
            nn.init.normal_(self.B, std=0.02)
        nn.init.zeros_(self.E)

    def scaling_at(self, rank: int) -> float:
        """The scale c of an adapter of that rank."""
        return float(self.config.alpha / (rank + (EPSILON if self.config.draw in (None, "normal") else 0.0)))

    @torch.no_grad()
    def scale_for(self, rank: int) -> None:
        """From now on scale by the c of `rank` instead of the capacity's, in place."""
        self.gain.fill_(self.scaling_at(rank) / self.scaling)

    def gates(self) -> Tensor:
        """(capacity,): E times the mask and the gain; with a graph."""
        return self.E * (self.mask * self.gain)

    def composed(self) -> Tensor:
        """The change c B diag(E) A of the weight, (out, in) float32; with a graph."""
        return self.change()

    def branch(self) -> Branch:
        return Branch(self.gates()[:, None] * self.A, self.B, self.scaling, dropout=self.config.dropout)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._observed(x, base) if self.watch and torch.is_grad_enabled() else super().forward(x, base)

    def _observed(self, x: Tensor, base: FrozenLinear) -> Tensor:
        """The same map through the composed matrix, so that its gradient exists and can be collected."""
        seen = F.dropout(x, self.config.dropout, self.training)
        change = self.composed()
        if change.requires_grad:
            change.register_hook(self._collect)
        dtype = self.compute_dtype or x.dtype
        return base(x) + dense_linear(seen.to(dtype), change).to(x.dtype)

    def _collect(self, gradient: Tensor) -> None:
        if self._gradient is None:
            self._gradient = gradient.detach()
        else:
            self._gradient += gradient.detach()

    def take_gradient(self) -> Tensor | None:
        """The loss's gradient at the composed change (out, in), summed over the backward passes since the last call.

        None where there was no pass. Collected only while `watch` is true, and then held for every site at once.
        """
        gradient, self._gradient = self._gradient, None
        return gradient

    def penalty(self) -> Tensor | None:
        """What an allocator set as `regularizer`, of these factors."""
        return None if self.regularizer is None else self.regularizer(self.A, self.B, self.mask)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features + 1))
