"""SMT: the square blocks of the weight that matter most for the task train."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.entries import Placed, budget
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.linalg import Context, in_shape_of
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, PlacedConfig

SMALLEST = 8  # a side below it is no block but a few entries


@ADAPTERS.register
class SMT(Placed):
    """Sparse matrix tuning: some square blocks of the weight train, each as a difference beside it.

        y[i] += x[j] D_n^T      for every chosen block n = (i, j)
        W'    = W + the D_n at their places

    with x[j] and y[i] the j-th and i-th b inputs and outputs; b is the greatest common divisor of `block` and both
    sides of W, 256 in all layers of Llama. n = 1 ... N, N = `blocks` or, without it, `share` of the blocks of W,
    rounded, one at the least. Which blocks, and how many of `share` each matrix gets, `init: smt` decides.

    Shapes: D (N, b, b) = 0, so W' = W at step 0; `places` (N) are numbers of blocks, row by row.
    Trains: N b^2 numbers per site. Memory: 4 bytes each and the optimizer's state; the pass keeps its input alone, and
    gradients of other blocks, or of W, are never formed.
    Source: He et al., "SMT: Fine-Tuning Large Language Models with Sparse Matrices", ICLR 2025, and the authors' code
    (HectorHHZ/Sparse_Matrix_Tuning), whose selection and layer were read; `share: 0.0084` of attention and of the rest
    is its setting for Llama 3 8B.
    Departures: the blocks are differences beside a base of any storage, not copies of the same size that are written
    into W in every pass. So on a dense base too they cost no more: 4 bytes a number for either, and `share` of a pass's
    work, with W left as it was; weight decay would pull to the pretrained weight and not to 0, and a bfloat16 W never
    rounds them. Queries, keys and values alone, as in the paper, are `targets: [q_proj, k_proj, v_proj]`; budgets of
    their own for attention and the rest are `shares` of the init.
    """

    aliases = {
        "sparse_matrix_tuning": "adapter: smt\ninit: smt",
        "num_submatrix_attn": "adapter: smt\ninit: {method: smt, blocks: 890}",
        "num_submatrix_mlp": "adapter: smt\ninit: {method: smt, shares: {'self_attn.*': 0.0084, 'mlp.*': 0.0084}}",
        "full_ft_steps": "adapter: smt\ninit: {method: smt, batches: 100, warmup_rate: 9.65e-6}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}
    roles = {"D": "core"}

    config: Config

    class Config(PlacedConfig):
        block: int = Field(
            256, gt=1, description="side of the blocks; what it has in common with both sides of W"
        )
        share: float = Field(0.0084, gt=0, le=1, description="share of the blocks that train")
        blocks: int | None = Field(
            None, gt=0, description="blocks of every matrix that train, instead of the share"
        )

        def side(self, width: int, out: int) -> int:
            """Side of a block of a weight (out, width)."""
            return math.gcd(self.block, width, out)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.side, total, many = blocks_of(config, site)
        if self.side < min(SMALLEST, config.block):
            shape = f"{site.out_features} x {site.in_features}"
            raise ValueError(
                f"{shape} has no blocks: its sides and block {config.block} share {self.side}; exclude it"
            )
        self.lay(many, total)
        self.D = nn.Parameter(torch.zeros(many, self.side, self.side))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def change(self) -> Tensor:
        rows, columns = self.located()
        across = self.site.in_features // self.side
        blocks = self.D.new_zeros(self.site.out_features // self.side * across, self.side, self.side)
        whole = blocks.index_add(0, rows * across + columns, self.D)
        dense: Tensor = whole.unflatten(0, (-1, across)).transpose(1, 2).reshape(self.site.out_features, -1)
        return dense

    def located(self) -> tuple[Tensor, Tensor]:
        """Which group of outputs and which of inputs every block is of."""
        across = self.site.in_features // self.side
        rows = self.places.div(across, rounding_mode="floor")
        return rows, self.places - rows * across

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        dtype, out = self.compute_dtype or x.dtype, self.site.out_features
        y: Tensor = _BlockMatmul.apply(x.to(dtype), self.D, *self.located(), out)  # type: ignore[no-untyped-call]
        return y.to(x.dtype)

    @staticmethod
    def count(config: SMT.Config, site: Site) -> int:
        side, _, many = blocks_of(config, site)
        return many * side * side


def blocks_of(config: SMT.Config, site: Site) -> tuple[int, int, int]:
    """Side of a block, how many the weight has, and how many of them train."""
    side = config.side(site.in_features, site.out_features)
    total = site.in_features * site.out_features // side**2
    return side, total, config.blocks or budget(config.share, total)


class _Kept(Context):
    out: int


class _BlockMatmul(torch.autograd.Function):
    """x times the blocks. Saves x and D: dD_n = dy[i]^T x[j], dx[j] += dy[i] D_n."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, D: Tensor, rows: Tensor, columns: Tensor, out: int) -> Tensor:
        ctx.out = out
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, D, rows, columns)
        return in_shape_of(_times(flat, D.to(x.dtype).mT, columns, rows, out), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, D, rows, columns = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _times(dy, D.to(dy.dtype), rows, columns, x.shape[-1]).view(*grads[0].shape[:-1], -1)
        side = D.shape[-1]
        dD = torch.bmm(_slices(dy, rows, side).mT, _slices(x, columns, side)).to(D.dtype)
        return dx, dD, None, None, None


def _times(x: Tensor, D: Tensor, source: Tensor, target: Tensor, width: int) -> Tensor:
    """The slices `source` of x (tokens, ...) times D, summed into the slices `target` of (tokens, width)."""
    y = x.new_zeros(width // D.shape[-1], len(x), D.shape[-1])
    y.index_add_(0, target, torch.bmm(_slices(x, source, D.shape[-1]), D))
    return y.transpose(0, 1).reshape(len(x), width)


def _slices(x: Tensor, chosen: Tensor, side: int) -> Tensor:
    """(chosen, tokens, side) of x (tokens, ...)."""
    slices: Tensor = x.unflatten(1, (-1, side)).transpose(0, 1)
    return slices.index_select(0, chosen)
