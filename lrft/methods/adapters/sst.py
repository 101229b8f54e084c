"""Sparse spectral training: all singular values of a weight train, and a changing few of its singular vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.callback import Callback, TimedMethod
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.core.settling import Settling
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Sequence, check_every

TINY = 1e-12


@ADAPTERS.register
class SST(Adapter, Settling):
    """Sparse spectral training: the weight as its singular value decomposition, of which a part trains at a time.

        W' = U diag(S) V,  y = ((x V^T) * S) U^T + b
        every step:        S_i <- max(S_i - step along u_i^T G v_i, 0)                       for all i
                           u_i <- step along G v_i,  v_i <- step along u_i^T G               for the drawn i
                           u_i <- u_i / |u_i|,  v_i <- v_i / |v_i|
        every T steps:     draw r of the k indices without replacement, with weights q / k + (1 - q) S_i / sum S
        every T N steps:   U diag(S) V <- its own singular value decomposition

    with G the gradient of W', u_i column i of U and v_i row i of V, r = `rank`, T = `every`, N = `rounds`,
    q = `uniform_share`. The gradients of u_i and v_i lack the factor S_i that autograd would give them, so that vectors
    of small values train too. At a draw the optimizer forgets what it knows of the vectors, and the rate rises anew in
    `warmup` steps; at a decomposition it forgets the values too.

    Shapes: k = min(in, out); U (out, k), S (k), V (k, in), with the drawn ones in B (out, r) and A (r, in). W' = W at
    step 0, up to the rounding of the decomposition.
    Trains: r (in + out) + k numbers per site. U and V whole stand beside, in float32, in the place of the weight: more
    numbers than it has. The forward pass keeps x alone.
    Source: Zhao et al., "Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks", ICML
    2025, arXiv 2405.15481: the abstract and two summaries of the text; no code was to be had. The share of the model
    that trains is the published one (18.7 % of LLaMA-1.3B).
    Departures: settled here: q = 0.5, as the summary of the later version has it (the other has q = 0); the steps are
    the recipe's optimizer's; T, N and the length of the warm-up are not known, and the defaults claim nothing.
    Advice: the paper trains from random weights, with `rank` 64 or 128; embeddings, head and norms train in full there:
    `trainable` names them.
    """

    aliases = {
        "sparse_spectral_training": "adapter: sst",
    }
    provides = {"adapters", "mergeable", "own_weights"}
    roles = {"A": "lora_A", "B": "lora_B", "S": "magnitude"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(
            64, gt=0, le=65_536, description="singular vectors of each side that train at a time"
        )
        every: int = Field(200, gt=0, description="optimizer steps between two draws")
        rounds: int = Field(8, gt=0, description="draws between two decompositions")
        uniform_share: float = Field(
            0.5, ge=0, le=1, description="of the chances, what does not go by the size of singular values"
        )
        warmup: int = Field(10, ge=0, description="steps in which the rate rises again after a draw")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run whose first draw is its only one."""
            check_every(self.every, total_steps, "adapter.every")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        k = min(site.in_features, site.out_features)
        if config.rank > k:
            raise ValueError(
                f"rank {config.rank} is more than the weight has singular vectors; use at most {k}"
            )
        self.A = nn.Parameter(torch.zeros(config.rank, site.in_features))
        self.B = nn.Parameter(torch.zeros(site.out_features, config.rank))
        self.S = nn.Parameter(torch.zeros(k))
        self.register_buffer("U", torch.zeros(site.out_features, k))
        self.register_buffer("V", torch.zeros(k, site.in_features))
        self.register_buffer("drawn", torch.arange(config.rank))

    @classmethod
    def timed(cls, config: Any) -> Callback:
        return Draws(config)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        self._decompose(weight.float())
        self.draw(None)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Let others train: those that did go back among the rest, and A and B become the newly drawn ones."""
        self._put_back()
        chances = chances_of(self.S, self.config.uniform_share).cpu()
        drawn = torch.multinomial(chances, self.config.rank, generator=generator)
        U, V, kept = self.get_buffer("U"), self.get_buffer("V"), self.get_buffer("drawn")
        kept.copy_(drawn.sort().values)
        self.A.copy_(V[kept])
        self.B.copy_(U[:, kept])

    @torch.no_grad()
    def decompose(self) -> None:
        """Make all vectors orthogonal again; which train is for a draw to say."""
        self._decompose(self.own_weight())

    def _decompose(self, weight: Tensor) -> None:
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        kept = self.get_buffer("drawn")
        for held, found in ((self.get_buffer("U"), U), (self.S, S), (self.get_buffer("V"), V)):
            held.copy_(found)
        self.A.copy_(V[kept])
        self.B.copy_(U[:, kept])

    def _put_back(self) -> None:
        kept = self.get_buffer("drawn")
        self.get_buffer("U")[:, kept] = self.B
        self.get_buffer("V")[kept] = self.A

    def settle(self, rates: Mapping[Tensor, float]) -> None:
        self.S.clamp_min_(0)
        self.A.div_(self.A.norm(dim=1, keepdim=True).clamp_min(TINY))
        self.B.div_(self.B.norm(dim=0, keepdim=True).clamp_min(TINY))

    def own_weight(self) -> Tensor:
        """The weight that this is, (out, in) float32, with the gradients of training."""
        transposed = self._through(torch.eye(self.site.in_features, device=self.S.device))
        return transposed.mT

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.own_weight() - weight.float()).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        y = self._through(x.to(self.compute_dtype or x.dtype)).to(x.dtype)
        return y if base.bias is None else y + base.bias

    def _through(self, x: Tensor) -> Tensor:
        rest = (self.get_buffer(name) for name in ("U", "V", "drawn"))
        y: Tensor = _Spectral.apply(x, self.A, self.B, self.S, *rest)  # type: ignore[no-untyped-call]
        return y

    @staticmethod
    def count(config: Config, site: Site) -> int:
        many = min(site.in_features, site.out_features)
        return int(config.rank * (site.in_features + site.out_features) + many)


def chances_of(S: Tensor, uniform_share: float) -> Tensor:
    """The weights (k) of a draw, which sum to 1; none is 0, so that there are always enough to be drawn."""
    total = S.sum()
    by_size = S / total if bool(total > 0) else torch.full_like(S, 1 / len(S))
    chances: Tensor = uniform_share / len(S) + (1 - uniform_share) * by_size
    return chances.clamp_min(TINY)


class Draws(TimedMethod):
    """Draws at every site, and decompositions; when, follows from the step alone."""

    config: SST.Config

    def after_step(self, run: Run) -> None:
        if run.step % self.config.every or run.at_an_end:
            return
        whole = run.step % (self.config.every * self.config.rounds) == 0
        forgotten = []
        for index, (_, site) in enumerate(run.adapted()):
            part = site.adapter
            assert isinstance(part, SST)
            if whole:
                part.decompose()
            seed = ((run.seed * 1_000_003 + run.step) * 2_000_003 + index + 1) % 2**63
            part.draw(torch.Generator().manual_seed(seed))
            forgotten += [part.A, part.B, part.S] if whole else [part.A, part.B]
        run.reset_optimizer(forgotten)
        run.restart_schedule(self.config.warmup)


class _Spectral(torch.autograd.Function):
    """((x V^T) * S) U^T with the drawn rows of V in A and columns of U in B. Saves x and what trains.

    With D = dy: dx = ((D U) * S) V, dS = sum of (D U) * (x V^T), dA = (D B)^T x, dB = D^T (x A^T).
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, A: Tensor, B: Tensor, S: Tensor, *rest: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, A, B, S, *rest)
        (U, V, drawn), dtype = rest, x.dtype
        others = S.index_fill(0, drawn, 0)
        y = matmul(linear(flat, V.to(dtype)) * others.to(dtype), U.to(dtype).mT)
        y.addmm_(F.linear(flat, A.to(dtype)) * S[drawn].to(dtype), B.to(dtype).mT)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, S, U, V, drawn = ctx.saved_tensors
        dy, dtype = grads[0].reshape(-1, grads[0].shape[-1]), grads[0].dtype
        right, left = dy @ B.to(dtype), F.linear(x, A.to(dtype))
        over = matmul(dy, U.to(dtype))
        dS = (over * linear(x, V.to(dtype))).sum(dim=0, dtype=torch.float32)
        dS[drawn] = (right * left).sum(dim=0, dtype=torch.float32)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = matmul(over * S.index_fill(0, drawn, 0).to(dtype), V.to(dtype))
            dx = dx.addmm_(right * S[drawn].to(dtype), A.to(dtype)).view(*grads[0].shape[:-1], -1)
        return dx, (right.mT @ x).float(), (dy.mT @ left).float(), dS, None, None, None
