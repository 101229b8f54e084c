"""What the attention backends keep, on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.ops.attention import Documents, attend
from lrft.ops.attention_blocks import Rule
from lrft.ops.linalg import Context

Attend = Callable[[Tensor, Tensor, Tensor, Documents, Rule], Tensor]


def attention_of(backend: str) -> Attend:
    """(B, H, L, D), (B, K, L, D), (B, K, L, D) -> (B, L, H, D) as the backend would, shapes and kept tensors alone."""
    if backend == "segmented":
        return attend
    if backend == "eager":
        return _eager
    return _masked if backend == "sdpa" else _fused


def _eager(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """Transformers' own: keys and values repeated, all pairs, softmax in float32."""
    key, value = (_repeat(part, query.shape[1]) for part in (key, value))
    scores = torch.matmul(query, key.mT) * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores + scores.new_empty(len(query), 1, *scores.shape[-2:])
    p = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(p, value).transpose(1, 2).contiguous()


def _masked(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """Torch's own with a mask, to which keys and values are repeated."""
    key, value = (_repeat(part, query.shape[1]) for part in (key, value))
    return _fused(query, key, value, documents, rule)


def _fused(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """A kernel that keeps its inputs, its output and one number a row of the softmax."""
    y: Tensor = _Kernel.apply(query, key, value)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2)


def _repeat(x: Tensor, heads: int) -> Tensor:
    """(B, K, L, D) -> (B, heads, L, D), a copy where they are more."""
    B, K, L, D = x.shape
    return x if heads == K else x[:, :, None].expand(B, K, heads // K, L, D).reshape(B, heads, L, D)


class _Kernel(torch.autograd.Function):
    """The shapes of a fused attention."""

    @staticmethod
    def forward(ctx: Context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
