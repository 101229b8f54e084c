"""SALT: large singular values are scaled and shifted, the rest gets a low-rank change in their own frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank
from lrft.core.params import Site
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal


@ADAPTERS.register
class SALT(LowRank):
    """Singular value adaptation with low-rank transformation: scaled and shifted at the top, low-rank below.

        W  = U diag(S) V^T
        C  = [diag(a * S_k + b), 0; 0, diag(S_rest) + X Y]
        W' = W + U (relu(C) - diag(S)) V^T
        y  = x W'^T + b_0
        loss += sum over sites of penalty (||a * S_k + b - S_k|| + ||X Y||)

    with r = `rank`, m = min(in, out), k = floor(`share` m) and at least 1, `penalty` as set, b_0 the base's bias, norms
    Frobenius'. With `relu: all` every entry of C is cut at 0, so off its diagonal X Y counts where it is positive
    alone; with `relu: diag` only the diagonal is, the singular values. The SVD is of the weight as the base stores it.

    Shapes: U (out, m), S (m), V^T (m, in), frozen; a (k) = 1, b (k) = 0, X (m - k, r) ~ U(-sqrt(6 / r), sqrt(6 / r)),
    Y (r, m - k) = 0, so W' = W at step 0. Under `relu: all` the zeros off the diagonal have no gradient until Y has
    moved by that of the diagonal.
    Trains: 2 k + 2 r (m - k) numbers per site. U, S and V are saved with them, 4 m (in + out + 1) bytes: a float32 copy
    of the weight and a square of its shorter side. Of x only x V is kept for the backward pass, m numbers a token.
    Source: "SALT: Singular Value Adaptation with Low-Rank Transformation", 2025, arXiv 2503.16055, and the authors'
    code (BioMedIA-MBZUAI/SALT), its linear layer; made for SAM, carried here to the linear layers of a language model.
    Departures: none in the function. `relu: all`, `share: 0.1`, and `penalty: 0` are the code's; so is the bound of X,
    where its a = sqrt(20) has no effect under relu. `relu: diag` is an offer of ours.
    Advice: an exact SVD of every adapted weight when training begins. A poor fit to quantized bases, whose memory U and
    V exceed.
    """

    provides = {"adapters", "mergeable", "linear_delta", "undivided"}
    roles = {"a": "magnitude", "b": "magnitude", "X": "matrix", "Y": "matrix"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536, description="of the change of the smaller singular values")
        share: float = Field(
            0.1, gt=0, lt=1, description="of the singular values, the largest, that scale and shift"
        )
        relu: Literal["all", "diag"] = Field(
            "all", description="what is cut at 0: every entry between U and V, or the singular values"
        )
        penalty: float = Field(0.0, ge=0, description="weight of the norms that are added to the loss")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        side, top = min(site.in_features, site.out_features), kept(config, site)
        if config.rank > side - top:
            message = f"rank {config.rank} is more than the {side - top} singular values below the top {top}"
            remedy = f"use at most {side - top}" if side > top else "leave the layer out of adapter.targets"
            raise ValueError(f"{message}; {remedy}")
        self.register_buffer("U", torch.zeros(site.out_features, side))
        self.register_buffer("S", torch.zeros(side))
        self.register_buffer("Vh", torch.zeros(side, site.in_features))
        self.a, self.b = nn.Parameter(torch.ones(top)), nn.Parameter(torch.zeros(top))
        self.X = nn.Parameter(torch.empty(side - top, config.rank))
        self.Y = nn.Parameter(torch.empty(config.rank, side - top))
        self.reset()

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.get_buffer("U").any():  # the frame stays what it was before a restart
            return
        for name, found in zip(("U", "S", "Vh"), truncated_svd(weight, min(weight.shape)), strict=True):
            self.get_buffer(name).copy_(found)

    def reset(self) -> None:
        nn.init.ones_(self.a)
        nn.init.zeros_(self.b)
        nn.init.kaiming_uniform_(self.X, nonlinearity="relu")
        nn.init.zeros_(self.Y)

    def branch(self) -> Branch:
        U, Vh, trained = self.get_buffer("U"), self.get_buffer("Vh"), (self.a, self.b, self.X, self.Y)

        def form(dtype: torch.dtype, *trained: Tensor) -> tuple[Tensor, Tensor]:
            top, rest = self.change_between(*trained)
            k = len(top)
            return Vh, torch.cat([U[:, :k] * top, U[:, k:] @ rest], dim=1)

        def pull(
            dtype: torch.dtype, d_down: Tensor | None, d_up: Tensor | None, *trained: Tensor
        ) -> tuple[Tensor, ...]:
            assert d_up is not None
            k = len(self.a)
            seeds = (U[:, :k] * d_up[:, :k]).sum(0), U[:, k:].mT @ d_up[:, k:]
            with torch.enable_grad():
                inputs = [tensor.detach().requires_grad_(True) for tensor in trained]
                return torch.autograd.grad(self.change_between(*inputs), inputs, seeds)

        return Branch(scale=self.scaling, formed=Formed(trained, form, pull, trains_down=False))

    def change_between(self, a: Tensor, b: Tensor, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """relu(C) - diag(S): of its top the diagonal (k,), and all of its rest (m - k, m - k)."""
        S = self.get_buffer("S")
        top, rest = S[: len(a)], torch.diag(S[len(a) :])
        below = rest + X @ Y
        cut = below.relu()
        if self.config.relu == "diag":
            cut = torch.where(torch.eye(len(below), dtype=torch.bool, device=below.device), cut, below)
        return (a * top + b).relu() - top, cut - rest

    def penalty(self) -> Tensor | None:
        if self.config.penalty == 0:
            return None
        top = self.get_buffer("S")[: len(self.a)]
        # ||X Y||^2 = <X^T X, Y Y^T>, which is formed of rank x rank alone.
        squares = (
            (self.a * top + self.b - top).square().sum(),
            (self.X.mT @ self.X * (self.Y @ self.Y.mT)).sum(),
        )
        return self.config.penalty * sum((root(square) for square in squares), torch.zeros_like(squares[0]))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        top = kept(config, site)
        return int(2 * top + 2 * config.rank * (min(site.in_features, site.out_features) - top))


def kept(config: SALT.Config, site: Site) -> int:
    """K, how many singular values are scaled and shifted."""
    return max(1, int(config.share * min(site.in_features, site.out_features)))


def root(square: Tensor) -> Tensor:
    """The root of a scalar, with a gradient of 0 where it is 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
