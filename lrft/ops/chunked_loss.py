"""Loss and gradient of a frozen linear head in one pass over chunks of its logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.ops.frozen_head import FrozenHead, rows_gradient
from lrft.ops.linalg import Context
from lrft.ops.native import Kernels, kernels_for
from lrft.ops.products import working


class _Kept(Context):
    """What the two functions keep beside tensors."""

    scale: float


class ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over chunks, for a frozen linear head without a soft cap."""

    @staticmethod
    def forward(
        ctx: _Kept,
        hidden: Tensor,
        rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        first: int | Tensor,
        targets: Tensor,
        scale: float,
        chunk: int,
        smoothing: float,
        z: float,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient, head = torch.empty_like(hidden), FrozenHead.of(hidden, rows, weight, bias, first)
        for losses in _losses(hidden, head, targets, scale, chunk, gradient, smoothing, z):
            total += losses.sum()
        ctx.save_for_backward(gradient, *head.kept(hidden))
        ctx.scale = scale
        return total

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *kept = ctx.saved_tensors
        # In float32, since a loss scale over few targets is more than float16 holds.
        pulled = (gradient.float() * grads[0]).to(gradient.dtype)
        return pulled, rows_gradient(tuple(kept), grads[0], ctx.scale), *[None] * 8


class ChunkedLogprobs(torch.autograd.Function):
    """The same for each target by itself: row i of the kept gradient is scaled by what comes back for target i."""

    @staticmethod
    def forward(
        ctx: _Kept,
        hidden: Tensor,
        rows: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        first: int | Tensor,
        targets: Tensor,
        scale: float,
        chunk: int,
    ) -> Tensor:
        gradient, head = torch.empty_like(hidden), FrozenHead.of(hidden, rows, weight, bias, first)
        losses = torch.cat(list(_losses(hidden, head, targets, scale, chunk, gradient)))
        ctx.save_for_backward(gradient, *head.kept(hidden))
        ctx.scale = scale
        return losses[:, 0].neg_()

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *kept = ctx.saved_tensors
        by = -grads[0][:, None]
        return (
            (gradient.float() * by).to(gradient.dtype),
            rows_gradient(tuple(kept), by, ctx.scale),
            *[None] * 6,
        )


def _losses(
    hidden: Tensor,
    head: FrozenHead,
    targets: Tensor,
    scale: float,
    chunk: int,
    gradient: Tensor,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> Iterator[Tensor]:
    """Cross-entropy (rows, 1) of chunk after chunk in float32; fills `gradient` (N, d) on the way.

    d loss / d hidden = scale * (softmax(logits) - q) W, stored in the hidden states' dtype, with q = onehot(targets),
    or (1 - smoothing) onehot(targets) + smoothing / V. With `z` the loss has z L^2 more, L the log of what the softmax
    divides by, and the softmax a factor 1 + 2 z L.
    """
    wide = working(hidden) != hidden.dtype
    chunk += (chunk // 2) * wide  # in float32 alone, as many bytes as in two precisions
    rows, size = min(chunk, hidden.shape[0]), head.weight.shape[0]
    # Two buffers serve every chunk: allocating a chunk of logits anew costs more in page faults than the softmax.
    full = torch.empty(rows, size, dtype=torch.float32, device=hidden.device)
    half = full if wide else torch.empty(rows, size, dtype=hidden.dtype, device=hidden.device)
    for start in range(0, hidden.shape[0], chunk):
        part, wanted = hidden[start : start + chunk], targets[start : start + chunk, None]
        logits = head.logits(part, half[: part.shape[0]])
        scores = logits if wide else full[: part.shape[0]].copy_(logits)
        if scale != 1.0:
            scores.mul_(scale)
        if not smoothing and not z and (kernels := kernels_for(scores)) is not None:
            yield _at_once(kernels, scores, wanted)
            head.pull(
                scores if wide else logits.copy_(scores), scores, start, gradient[start : start + chunk]
            )
            continue
        top, chosen = scores.amax(-1, keepdim=True), scores.gather(1, wanted)
        if smoothing:
            chosen.lerp_(scores.mean(-1, keepdim=True), smoothing)
        mass = scores.sub_(top).exp_().sum(-1, keepdim=True)
        log = mass.log() + top
        yield log - chosen + z * log.square() if z else log - chosen
        scores.div_(mass)
        if z:
            scores.mul_(1 + 2 * z * log)
        if smoothing:
            scores.sub_(smoothing / size)
        scores.scatter_add_(1, wanted, scores.new_full(wanted.shape, smoothing - 1.0))
        head.pull(scores if wide else logits.copy_(scores), scores, start, gradient[start : start + chunk])
    if scale != 1.0:
        gradient *= scale


def _at_once(kernels: Kernels, scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (rows, 1) of scores (rows, size), which become softmax less one at the targets (rows, 1)."""
    losses = scores.gather(1, targets)  # which also sees to it that all are there
    kernels("softmax_loss", scores, targets.contiguous(), losses, *scores.shape)
    return losses
