"""A frozen matmul whose inputs are turned first, by factors that mix them in small blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul


@dataclass(frozen=True)
class Mixing:
    """Which inputs the blocks of a factor mix.

    Attributes:
        order: (in,) int64, the inputs in the order of the blocks, and `back`: the inverse; None for the order as it is.
    """

    order: Tensor | None = None
    back: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """The inputs (..., in) in the order of the blocks."""
        return x if self.order is None else x[..., self.order]

    def restore(self, x: Tensor) -> Tensor:
        """Back from that order."""
        return x if self.back is None else x[..., self.back]

    def mix(self, x: Tensor, blocks: Tensor) -> Tensor:
        """Tokens x (tokens, in) times a factor whose blocks are (k, b, b)."""
        slices = self.gather(x).unflatten(1, blocks.shape[:2])
        return self.restore(torch.einsum("tkb,kbc->tkc", slices, blocks).flatten(1))


def turned_linear(x: Tensor, base: FrozenMap, blocks: Tensor, mixings: tuple[Mixing, ...]) -> Tensor:
    """X (I + N_1) ... (I + N_m) W^T, without the bias, (..., in) -> (..., out) in the dtype of x.

    Args:
        blocks: (m, k, b, b) float32, the blocks of every N, cast to the dtype of x at the point of use.
        mixings: which inputs those of each N mix.
    """
    y: Tensor = _TurnedMatmul.apply(x, base, mixings, blocks)  # type: ignore[no-untyped-call]
    return y


def moved(x: Tensor, blocks: Tensor, mixings: tuple[Mixing, ...]) -> list[Tensor]:
    """What every factor adds to x (tokens, in) and to what those before it added."""
    found: list[Tensor] = []
    seen = x
    for mixing, block in zip(mixings, blocks, strict=True):
        found.append(mixing.mix(seen, block))
        seen = seen + found[-1]
    return found


def folded(blocks: Tensor, mixings: tuple[Mixing, ...], reach: int) -> Tensor:
    """N of the product (I + N_1) ... (I + N_m) = I + N, whose blocks (in / reach, reach, reach) lie side by side.

    Args:
        reach: how many neighbouring inputs the factors mix with each other and with no others.
    """
    width = blocks.shape[1] * blocks.shape[2]
    ones = torch.eye(reach, dtype=blocks.dtype, device=blocks.device).repeat(1, width // reach)
    added = torch.stack(moved(ones, blocks, mixings)).sum(0)
    return added.view(reach, -1, reach).transpose(0, 1)


class _Kept(Context):
    base: FrozenMap
    mixings: tuple[Mixing, ...]


class _TurnedMatmul(torch.autograd.Function):
    """Saves x; forms what the factors make of it, and decodes W, again in the backward pass."""

    @staticmethod
    def forward(
        ctx: _Kept, x: Tensor, base: FrozenMap, mixings: tuple[Mixing, ...], blocks: Tensor
    ) -> Tensor:
        ctx.base, ctx.mixings = base, mixings
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, blocks)
        turned = flat
        for added in moved(flat, blocks.to(x.dtype), mixings):
            turned = turned + added
        return in_shape_of(linear(turned, base.weight()), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, blocks = ctx.saved_tensors
        masters, blocks = blocks, blocks.to(x.dtype)
        shape = blocks.shape[1:3]
        added = moved(x, blocks[:-1], ctx.mixings[:-1])
        seen = [x]
        for one in added:
            seen.append(seen[-1] + one)
        g = matmul(grads[0].reshape(-1, grads[0].shape[-1]), ctx.base.weight())
        d_blocks = torch.empty_like(masters)
        for i in range(len(blocks) - 1, -1, -1):
            mixing = ctx.mixings[i]
            dy, slices = mixing.gather(g).unflatten(1, shape), mixing.gather(seen.pop()).unflatten(1, shape)
            d_blocks[i] = torch.einsum("tkb,tkc->kbc", slices, dy).float()
            g = g + mixing.mix(g, blocks[i].mT)
        return g.view(*grads[0].shape[:-1], g.shape[1]), None, None, d_blocks
