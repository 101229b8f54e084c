"""Cross-entropy of a linear head, computed in chunks so that the logits are never kept.

The largest tensor of a training step is usually the (tokens, vocabulary) logits. Here a chunk of them exists at a
time: its loss and its gradient with respect to the hidden states are formed in the forward pass and the logits are
dropped. Only supervised positions are computed at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.ops.frozen_head import FrozenHead, rows_gradient
from lrft.ops.linalg import Context
from lrft.ops.products import working

CHUNK = 256  # rows; measured flat between 128 and 256 on CPU, and small enough for a 150k vocabulary


@dataclass(frozen=True)
class Head:
    """How hidden states (N, d) become logits (N, V): `cap(scale * module(h))`.

    Attributes:
        module: the lm_head. A frozen dense one takes the chunked path below; any other (adapted, trained) is
            recomputed chunk by chunk in the backward pass, which is slower and as lean.
        softcap: Gemma 2's final c * tanh(logits / c), or None.
        scale: multiplies the logits before the cap.
        rows: (k, d) float32, rows that train in the place of k of the module's own; `module` answers with them too.
        first: which of the module's rows they begin at, or the place (k,) of each.
    """

    module: nn.Module
    softcap: float | None = None
    scale: float = 1.0
    rows: Tensor | None = None
    first: int | Tensor = 0

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) in the hidden states' dtype."""
        module, work = self.module, working(hidden)
        if torch.is_grad_enabled() or work == hidden.dtype or type(module) is not nn.Linear:
            return self.cap(module(hidden))
        flat = hidden.reshape(-1, hidden.shape[-1])
        head = FrozenHead.of(flat, None, module.weight, module.bias, 0)
        found = head.logits(flat, flat.new_empty(len(flat), len(module.weight), dtype=work))
        return self.cap(found.to(hidden.dtype).view(*hidden.shape[:-1], -1))

    def cap(self, logits: Tensor) -> Tensor:
        """Scale and soft-cap raw logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def is_frozen_dense(self) -> bool:
        """Whether the head is a plain linear layer that takes no gradient."""
        return isinstance(self.module, nn.Linear) and not any(
            p.requires_grad for p in self.module.parameters()
        )


def linear_cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK, smoothing: float = 0.0, z: float = 0.0
) -> Tensor:
    """Summed cross-entropy of `head(hidden)` against `targets`.

    Args:
        hidden: (N, d), the supervised positions only.
        targets: (N,) token ids.
        chunk: rows of logits alive at a time.
        smoothing: share of every target's mass that is spread evenly over the vocabulary.
        z: weight of the squared logarithm of what every softmax divides by.

    Returns:
        Scalar float32 sum over the N positions; 0 with a graph when N is 0.
    """
    if hidden.shape[0] == 0:
        return hidden.float().sum()
    if head.is_frozen_dense and head.softcap is None and torch.is_grad_enabled():
        total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.rows, *_frozen(head), targets, head.scale, chunk, smoothing, z
        )
        return total

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = head.logits(rows).float()
        loss = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
        return loss + z * logits.logsumexp(-1).square().sum() if z else loss

    total = torch.zeros((), device=hidden.device)
    for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(part, rows, wanted, use_reentrant=False)
        else:
            total = total + part(rows, wanted)
    return total


def target_logprobs(hidden: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log-probability of each target, (N, d) and (N,) -> (N,) float32, logits kept one chunk at a time.

    With gradients on, the backward pass is as lean as that of `linear_cross_entropy`.
    """
    if hidden.shape[0] == 0:
        return hidden.float().sum(-1)
    if head.is_frozen_dense and head.softcap is None and torch.is_grad_enabled():
        logprobs: Tensor = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, head.rows, *_frozen(head), targets, head.scale, chunk
        )
        return logprobs

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return -F.cross_entropy(head.logits(rows).float(), wanted, reduction="none")

    parts = [
        checkpoint(part, rows, wanted, use_reentrant=False) if torch.is_grad_enabled() else part(rows, wanted)
        for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _frozen(head: Head) -> tuple[Tensor, Tensor | None, int | Tensor]:
    weight: Tensor = head.module.get_parameter("weight")
    bias: Tensor | None = head.module._parameters.get("bias")
    return weight, bias, head.first


class _Kept(Context):
    """What the two functions keep beside tensors."""

    scale: float


class _ChunkedCrossEntropy(torch.autograd.Function):
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


class _ChunkedLogprobs(torch.autograd.Function):
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
