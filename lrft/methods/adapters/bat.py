"""Bat: blocks of the weight, each times a small trained matrix of its row of blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.linalg import in_shape_of
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class Bat(Adapter):
    """Block affine transformation: every r x r block of the weight is turned by a matrix of its row of blocks.

        W'_ij = W_ij + W_ij D_i + D_i      block in row i, column j of blocks
        y     = x W'^T + b

    with r = `rank`, the side of the blocks, which divides both in and out. The change depends on the weight and can
    have full rank.

    Shapes: W_ij (r, r), i = 1 ... out / r, j = 1 ... in / r; D (out / r, r, r) = 0, so W' = W at step 0.
    Trains: r out numbers per site. The change is formed from the decoded weight at every step and once more in the
    backward pass, and is not kept.
    Source: Kang and Yin, "Bone: Block Affine Transformation", 2024, arXiv 2409.15371, whose first version this is as
    far as its abstract tells; named Bat in the second. The formula is that of PEFT's layer (`init_weights: bat`).
    Departures: none; dropout has no place in it.
    """

    aliases = {
        "bone": "adapter: bat",
    }
    provides = {"adapters", "mergeable"}
    roles = {"D": "core"}
    peft_names = {"D": "miss_block"}
    peft_transposed = False

    class Config(AdapterConfig):
        rank: int = Field(64, gt=0, description="side of the blocks; divides the inputs and the outputs")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        for kind, width in (("inputs", site.in_features), ("outputs", site.out_features)):
            if width % config.rank:
                raise ValueError(
                    f"rank {config.rank} does not divide the {width} {kind}; use a common divisor of "
                    f"{site.in_features} and {site.out_features}"
                )
        self.D = nn.Parameter(torch.zeros(site.out_features // config.rank, config.rank, config.rank))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return _change(weight.float(), self.D).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return _TurnedMatmul.apply(x, self.D, base)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * site.out_features)

    @classmethod
    def peft_config(cls, config: Any, with_start: bool = False) -> dict[str, Any] | None:
        return {"peft_type": "MISS", "r": config.rank, "init_weights": "bat"}


def _blocks(matrix: Tensor, rank: int) -> Tensor:
    """(out, in) -> (out / r, in / r, r, r)."""
    return matrix.unflatten(0, (-1, rank)).unflatten(-1, (-1, rank)).permute(0, 2, 1, 3)


def _change(weight: Tensor, D: Tensor) -> Tensor:
    """W_ij D_i + D_i for all blocks, (out, in)."""
    turned = _blocks(weight, D.shape[-1]) @ D[:, None] + D[:, None]
    return turned.permute(0, 2, 1, 3).reshape(weight.shape)


class _TurnedMatmul(torch.autograd.Function):
    """x (W + change)^T + b. Saves x and D; with G = dy^T x in blocks, dD_i = sum_j (W_ij^T G_ij + G_ij)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, D: Tensor, base: FrozenLinear) -> Tensor:
        weight, flat = base.weight(), x.reshape(-1, x.shape[-1])
        ctx.base = base
        ctx.save_for_backward(flat, D)
        y = F.linear(flat, weight, base.bias)
        # A small change added to a weight in half precision would be rounded away, so the two stay apart.
        y.addmm_(flat, _change(weight.float(), D).to(x.dtype).mT)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, D = ctx.saved_tensors
        dy, weight = grads[0].reshape(-1, grads[0].shape[-1]), ctx.base.weight()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(dy, _change(weight.float(), D).to(dy.dtype))
            dx = dx.view(*grads[0].shape[:-1], dx.shape[-1])
        G = _blocks((dy.mT @ x).float(), D.shape[-1])
        dD = (_blocks(weight.float(), D.shape[-1]).mT @ G + G).sum(dim=1)
        return dx, dD.to(D.dtype), None
