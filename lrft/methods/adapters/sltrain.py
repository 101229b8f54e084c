"""SLTrain: a low-rank matrix and a sparse one with a fixed random support in the place of each weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters.factorized import Factorized
from lrft.ops.entries import filled
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul, outer, working
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class SLTrain(Factorized):
    """Sparse plus low-rank training from scratch: no dense weight exists between steps.

        y  = x W'^T + b
        W' = s B A + S

    with r = `rank`, s = `alpha` / r; S has nnz = int(`density` in out) entries that train, at places drawn at random
    once and fixed. W' is formed in the forward pass and again in the backward pass; of its gradient dy^T x the entries
    at the places of S are kept.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, the values of S (nnz) drawn as A. W' = S at step 0,
    not W: nothing of the weight that stood there is left.
    Trains: r (in + out) + int(`density` in out) numbers per site; W' can have full rank. Places are saved as 32-bit
    numbers where in * out allows it, 64-bit ones beyond.
    Source: Han et al., "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
    NeurIPS 2024, arXiv 2406.02214, and the authors' code (andyjm3/SLTrain).
    Departures: a bias stays that of the layer, where the code draws one. Its variant with a scale that trains is left
    out.
    Advice: a method for `model.weights: random`. Embeddings, head and norms train in full in the paper: `trainable`
    names them.
    """

    roles = {"A": "lora_A", "B": "lora_B", "values": "sparse"}

    config: Config  # type: ignore[assignment]  # fewer settings than the parent's

    class Config(AdapterConfig):
        rank: int = Field(128, gt=0, le=65_536)
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        density: float = Field(0.03, gt=0, lt=1, description="share of the entries that the sparse part has")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)  # type: ignore[arg-type]
        nn.init.zeros_(self.B)
        total, many = site.in_features * site.out_features, entries(config.density, site)
        if not many:
            raise ValueError(
                f"density {config.density} leaves no entry of {total}; use at least {1 / total:.2g}"
            )
        kind = torch.int32 if total < 2**31 else torch.int64
        self.register_buffer("places", torch.randperm(total)[:many].sort().values.to(kind))
        bound = site.in_features**-0.5
        self.values = nn.Parameter(torch.empty(many).uniform_(-bound, bound))

    def start(self, weight: Tensor) -> None:
        """Nothing is taken from the weight that stood there."""

    def own_weight(self) -> Tensor:
        return self.sparse() + self.scaling * self.B @ self.A

    def sparse(self) -> Tensor:
        """S as a dense matrix, (out, in) float32."""
        shape = self.site.out_features, self.site.in_features
        return filled(self.values, self.get_buffer("places"), shape)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        y: Tensor = _SparseLowRank.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), self.A, self.B, self.values, self.get_buffer("places"), self.scaling
        )
        y = y.to(x.dtype)
        return y if base.bias is None else y + base.bias

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return Factorized.count(config, site) + entries(config.density, site)


def entries(density: float, site: Site) -> int:
    """How many entries the sparse part has."""
    return int(density * (site.in_features * site.out_features))  # the product first, as in the code


class _Kept(Context):
    scaling: float


class _SparseLowRank(torch.autograd.Function):
    """x W^T with W = s B A + S. Saves x and what W is made of.

    With G = dy^T x: dx = dy W, dB = s G A^T, dA = s B^T G, dvalues = G at the places of S.
    """

    @staticmethod
    def forward(
        ctx: _Kept, x: Tensor, A: Tensor, B: Tensor, values: Tensor, places: Tensor, scaling: float
    ) -> Tensor:
        ctx.scaling = scaling
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, A, B, values, places)
        y = linear(flat, _weight(A, B, values, places, scaling, working(flat)))
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, values, places = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = matmul(dy, _weight(A, B, values, places, ctx.scaling, working(dy)))
            dx = dx.view(*grads[0].shape[:-1], dx.shape[-1])
        G = outer(dy, x)
        dB = (G @ A.to(G.dtype).mT).to(B.dtype).mul_(ctx.scaling)
        dA = (B.to(G.dtype).mT @ G).to(A.dtype).mul_(ctx.scaling)
        return dx, dA, dB, G.flatten().index_select(0, places).to(values.dtype), None, None


def _weight(
    A: Tensor, B: Tensor, values: Tensor, places: Tensor, scaling: float, dtype: torch.dtype
) -> Tensor:
    """The weight s B A + S in the precision it is used in, (out, in)."""
    product = (B.to(dtype) @ A.to(dtype)).mul_(scaling)
    product.view(-1).index_add_(0, places, values.to(dtype))
    return product
