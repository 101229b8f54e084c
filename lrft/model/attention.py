"""Attention over packed documents, one document at a time: no mask is built and nothing across documents is computed.

Registered with transformers as `segmented`, beside the stock backends. Shapes: H query heads, K key/value heads,
G = H / K, n tokens of a document, D head dimension. The G query heads of a group are folded into rows, so keys and
values are never repeated, and probabilities are kept in the input's precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Documents = tuple[tuple[int, int, int], ...]


def register() -> None:
    """Make `segmented` known to transformers; doing it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("segmented", segmented_attention)
    AttentionMaskInterface.register("segmented", _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The documents say who sees whom; a dense mask would only repeat it."""
    return


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; padding yields zeros.

    Args:
        query: (B, H, L, D); key and value: (B, K, L, D).
        documents: (row, start, end) of each document.

    Returns:
        (B, L, H, D), and None for the weights.
    """
    if documents is None:
        raise RuntimeError(
            "segmented attention needs the documents of the batch; call the model through `hidden`"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or 0
    if softcap is not None or dropout > 0:
        return _composed(query, key, value, documents, scale, window, softcap, dropout), None
    return _Segmented.apply(query, key, value, documents, scale, window), None


def _hidden_pairs(n: int, window: int, device: torch.device) -> Tensor:
    """(n, n) bool, True where the query may not see the key."""
    hidden = torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)
    return hidden if window <= 0 or window >= n else hidden | torch.ones_like(hidden).tril_(-window)


class _Segmented(torch.autograd.Function):
    """Softmax attention per document, keeping only the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: Documents, scale: float, window: int
    ) -> Tensor:
        B, H, L, D = query.shape
        K = key.shape[1]
        out = query.new_zeros(B, L, H, value.shape[-1])
        longest = max((end - start for _, start, end in documents), default=0)
        hidden = _hidden_pairs(longest, window, query.device)
        keep = any(ctx.needs_input_grad[:3])
        probabilities = []
        for row, start, end in documents:
            n = end - start
            q = query[row, :, start:end].reshape(K, H // K * n, D)
            scores = torch.bmm(q, key[row, :, start:end].mT).mul_(scale)
            scores.view(K, H // K, n, n).masked_fill_(hidden[:n, :n], -math.inf)
            p = torch.softmax(scores, dim=-1)
            out[row, start:end] = torch.bmm(p, value[row, :, start:end]).view(H, n, -1).transpose(0, 1)
            if keep:
                probabilities.append(p)
        ctx.documents, ctx.scale = documents, scale
        ctx.save_for_backward(query, key, value, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *probabilities = ctx.saved_tensors
        H, K, D = query.shape[1], key.shape[1], query.shape[-1]
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (row, start, end), p in zip(ctx.documents, probabilities, strict=True):
            n = end - start
            q = query[row, :, start:end].reshape(K, H // K * n, D)
            do = grads[0][row, start:end].transpose(0, 1).reshape(K, H // K * n, -1)
            dv[row, :, start:end] = torch.bmm(p.mT, do)
            dp = torch.bmm(do, value[row, :, start:end].mT)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scale)
            dq[row, :, start:end] = torch.bmm(ds, key[row, :, start:end]).view(H, n, D)
            dk[row, :, start:end] = torch.bmm(ds.mT, q)
        return dq, dk, dv, None, None, None


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same from differentiable pieces, for soft caps and attention dropout."""
    B, H, L, D = query.shape
    K = key.shape[1]
    pieces = {}
    for row, start, end in documents:
        n = end - start
        q = query[row, :, start:end].reshape(K, H // K * n, D)
        scores = torch.bmm(q, key[row, :, start:end].mT) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.view(K, H // K, n, n).masked_fill(_hidden_pairs(n, window, query.device), -math.inf)
        p = torch.dropout(torch.softmax(scores.float(), dim=-1).to(query.dtype), dropout, train=True)
        o = torch.bmm(p.view(K, -1, n), value[row, :, start:end]).view(H, n, -1).transpose(0, 1)
        pieces[row, start] = (end, o)
    rows = []
    for row in range(B):
        parts, at = [], 0
        for (_, start), (end, o) in sorted((k, v) for k, v in pieces.items() if k[0] == row):
            parts += [query.new_zeros(start - at, H, value.shape[-1]), o]
            at = end
        rows.append(torch.cat([*parts, query.new_zeros(L - at, H, value.shape[-1])]))
    return torch.stack(rows)
