"""A sum over rows, formed a chunk of rows at a time, so that nothing as wide as the vocabulary is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.ops.linalg import Context
from lrft.ops.loss import CHUNK, Head, sum_again

Part = Callable[..., Tensor]
"""(rows, ...) and whatever belongs to the same rows -> the sum over them, a float32 scalar."""


def sum_in_chunks(part: Part, head: Head, hidden: Tensor, *beside: Tensor, chunk: int = CHUNK) -> Tensor:
    """The sum of `part` over chunks of the rows, with its gradient for `hidden`.

    Of a head that is frozen each gradient is formed with its chunk, so nothing is computed twice; any other is computed
    again in the backward pass.

    Args:
        part: computes through `head`.
        hidden: (N, d).
        beside: (N, ...) each, without gradient.

    Returns:
        Scalar float32; 0 with a graph when N is 0.
    """
    if hidden.shape[0] == 0:
        return hidden.float().sum()
    if torch.is_grad_enabled() and head.is_frozen_dense and head.rows is None:
        total: Tensor = _Chunked.apply(part, chunk, hidden, *beside)  # type: ignore[no-untyped-call]
        return total
    return sum_again(part, chunk, hidden, *beside)


class _Chunked(torch.autograd.Function):
    """Sum and gradient in one pass over chunks."""

    @staticmethod
    def forward(ctx: Context, part: Part, chunk: int, hidden: Tensor, *beside: Tensor) -> Tensor:
        total, gradient = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for start, *given in zip(
            range(0, hidden.shape[0], chunk), *(one.split(chunk) for one in (hidden, *beside)), strict=True
        ):
            with torch.enable_grad():
                rows = given[0].detach().requires_grad_(True)
                loss = part(rows, *given[1:])
            total += loss.detach()
            (gradient[start : start + chunk],) = torch.autograd.grad(loss, rows)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # In float32, since a loss scale over few targets is more than float16 holds.
        pulled = (gradient.float() * grads[0]).to(gradient.dtype)
        return None, None, pulled, *[None] * (len(ctx.needs_input_grad) - 3)
