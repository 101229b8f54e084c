"""Cross-entropy of a linear head, computed in chunks so that the logits are never kept.

The largest tensor of a training step is usually the (tokens, vocabulary) logits. Here a chunk of them exists at a
time: its loss and its gradient with respect to the hidden states are formed in the forward pass and the logits are
dropped. Only supervised positions are computed at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.ops.chunked_loss import ChunkedCrossEntropy, ChunkedLogprobs
from lrft.ops.frozen_head import FrozenHead
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
        total: Tensor = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.rows, *_frozen(head), targets, head.scale, chunk, smoothing, z
        )
        return total

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = head.logits(rows).float()
        loss = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
        return loss + z * logits.logsumexp(-1).square().sum() if z else loss

    return sum_again(part, chunk, hidden, targets)


def sum_again(part: Callable[..., Tensor], chunk: int, hidden: Tensor, *beside: Tensor) -> Tensor:
    """The sum of `part` over chunks of rows, a scalar, each chunk computed again in the backward pass."""
    total = torch.zeros((), device=hidden.device)
    for given in zip(*(one.split(chunk) for one in (hidden, *beside)), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(part, *given, use_reentrant=False)
        else:
            total = total + part(*given)
    return total


def target_logprobs(hidden: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log-probability of each target, (N, d) and (N,) -> (N,) float32, logits kept one chunk at a time.

    With gradients on, the backward pass is as lean as that of `linear_cross_entropy`.
    """
    if hidden.shape[0] == 0:
        return hidden.float().sum(-1)
    if head.is_frozen_dense and head.softcap is None and torch.is_grad_enabled():
        logprobs: Tensor = ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
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
