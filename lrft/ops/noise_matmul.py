"""The product with a matrix of seeded normal numbers, which is drawn again instead of being kept."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.linalg import Context
from lrft.ops.products import linear


def noise(deviations: Tensor, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    """E (out, width): normal numbers, of each row with the deviation that `deviations` (out,) has for it."""
    if deviations.is_meta:
        return deviations.new_empty((len(deviations), width), dtype=dtype)
    generator = torch.Generator(deviations.device).manual_seed(seed)
    drawn = torch.randn((len(deviations), width), generator=generator, device=deviations.device)
    return drawn.mul_(deviations[:, None]).to(dtype)


def noise_linear(x: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """X E^T, (..., in) -> (..., out), with a graph to x; ambient generators are left alone."""
    y: Tensor = _NoiseProduct.apply(x, deviations, seed)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    seed: int
    width: int


class _NoiseProduct(torch.autograd.Function):
    """Keeps the deviations alone: dx = dy E."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, deviations: Tensor, seed: int) -> Tensor:
        ctx.seed, ctx.width = seed, x.shape[-1]
        ctx.save_for_backward(deviations)
        return linear(x, noise(deviations, ctx.width, seed, x.dtype))

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (deviations,) = ctx.saved_tensors
        return grads[0] @ noise(deviations, ctx.width, ctx.seed, grads[0].dtype), None, None
