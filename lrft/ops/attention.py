"""Causal attention within each document of a batch: no mask is built and nothing across documents is computed.

Shapes: H query heads, K key/value heads, G = H / K, n tokens of a document, D and D_v head dimensions. The G query
heads of a group are folded into rows, so keys and values are never repeated. Of a short document the probabilities are
kept for the backward pass, in the input's precision; a long one goes by blocks (`attention_blocks`) that keep none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrft.ops import attention_blocks as blocks
from lrft.ops.attention_blocks import LONG, Rule
from lrft.ops.linalg import Context as Kept

Documents = tuple[tuple[int, int, int], ...]


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """Softmax attention of every document to itself alone; what belongs to none gets zeros.

    Args:
        query: (B, H, L, D); key: (B, K, L, D); value: (B, K, L, D_v).
        documents: (row, start, end) of each document.

    Returns:
        (B, L, H, D_v).
    """
    plain = rule.softcap is None and rule.dropout == 0
    short = () if plain else tuple(d for d in documents if d[2] - d[1] <= LONG)
    if short and len(short) == len(documents):
        return _compose(query, key, value, short, rule)
    rest = documents if plain else tuple(d for d in documents if d[2] - d[1] > LONG)
    seed = int(torch.randint(2**62, ())) if rule.dropout > 0 else 0
    out: Tensor = _Attention.apply(query, key, value, rest, rule, seed, rule.sinks)  # type: ignore[no-untyped-call]
    return out + _compose(query, key, value, short, rule) if short else out


def hidden_pairs(n: int, window: int, device: torch.device) -> Tensor:
    """(n, n) bool, True where the query may not see the key."""
    hidden = torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)
    return hidden if window <= 0 or window >= n else hidden | torch.ones_like(hidden).tril_(-window)


class Context(Kept):
    """What the forward pass keeps for the backward pass, beside tensors."""

    documents: Documents
    rule: Rule
    seed: int


class _Attention(torch.autograd.Function):
    """Softmax attention per document, keeping the probabilities of short documents."""

    @staticmethod
    def forward(
        ctx: Context,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Documents,
        rule: Rule,
        seed: int,
        sinks: Tensor | None,
    ) -> Tensor:
        B, H, L, _ = query.shape
        out = query.new_zeros(B, L, H, value.shape[-1])
        lengths = [end - start for _, start, end in documents]
        longest = max((n for n in lengths if n <= LONG), default=0)
        shape = (longest, longest)
        mask = query.new_zeros(shape).masked_fill_(
            hidden_pairs(longest, rule.window, query.device), -math.inf
        )
        keep = any(ctx.needs_input_grad[:3])
        probabilities = []
        drawn = _generator(rule, seed, query.device)
        for (row, start, end), n in zip(documents, lengths, strict=True):
            q, k, v = (x[row, :, start:end] for x in (query, key, value))
            if n > LONG:
                blocks.attend(q, k, v, rule, drawn, out[row, start:end])
                continue
            p = _probabilities(q, k, rule, mask[:n, :n])
            out[row, start:end] = torch.bmm(p, v).view(H, n, -1).transpose(0, 1)
            if keep:
                probabilities.append(p)
        ctx.documents, ctx.rule, ctx.seed = documents, rule, seed
        ctx.save_for_backward(query, key, value, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *probabilities = ctx.saved_tensors
        rule, sinks, H = ctx.rule, ctx.rule.sinks, query.shape[1]
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        asked = sinks is not None and ctx.needs_input_grad[6]
        d_sinks = torch.zeros(H, dtype=torch.float32, device=query.device) if asked else None
        drawn = _generator(rule, ctx.seed, query.device)
        kept = iter(probabilities)
        for row, start, end in ctx.documents:
            q, k, v = (x[row, :, start:end] for x in (query, key, value))
            do = grads[0][row, start:end]
            if end - start > LONG:
                pulled = blocks.pull(do, q, k, v, rule, drawn, d_sinks)
            else:
                pulled = _pull(do, q, k, v, rule, next(kept), d_sinks)
            for whole, part in zip((dq, dk, dv), pulled, strict=True):
                whole[row, :, start:end] = part
        given = None if d_sinks is None or sinks is None else d_sinks.to(sinks.dtype)
        return dq, dk, dv, None, None, None, given


def _generator(rule: Rule, seed: int, device: torch.device) -> torch.Generator | None:
    """What dropout in blocks is drawn from, alike in forward and backward."""
    return torch.Generator(device).manual_seed(seed) if rule.dropout > 0 else None


def _probabilities(q: Tensor, k: Tensor, rule: Rule, mask: Tensor) -> Tensor:
    """(K, G n, n) of one short document, from (H, n, D), (K, n, D) and what is added to its scores (n, n)."""
    (H, n, D), K = q.shape, k.shape[0]
    # One pass: filling a mask in half precision takes as long as all products of the attention.
    added = mask.repeat(H // K, 1).expand(K, -1, -1)
    scores = torch.baddbmm(added, q.reshape(K, H // K * n, D), k.mT, alpha=rule.scale)
    return blocks.softmax(scores, rule.sinks)


def _pull(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, rule: Rule, p: Tensor, d_sinks: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (H, n, D), k and v of one short document; that of the sinks is added to `d_sinks`."""
    (H, n, D), K = q.shape, k.shape[0]
    do = do.transpose(0, 1).reshape(K, H // K * n, -1)
    dv = torch.bmm(p.mT, do)
    dp = torch.bmm(do, v.mT)
    if d_sinks is not None:
        d_sinks += blocks.pull_sinks(p, dp, H)
    ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
    rows = q.reshape(K, H // K * n, D)
    dq = torch.baddbmm(rows, ds, k, beta=0, alpha=rule.scale).view(H, n, D)
    return dq, torch.baddbmm(k, ds.mT, rows, beta=0, alpha=rule.scale), dv


def _compose(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """The same of short documents from differentiable pieces, for soft caps and attention dropout."""
    B, H, L, D = query.shape
    K = key.shape[1]
    pieces = {}
    for row, start, end in documents:
        n = end - start
        q = query[row, :, start:end].reshape(K, H // K * n, D)
        scores = torch.bmm(q, key[row, :, start:end].mT) * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        scores = scores.view(K, H // K, n, n).masked_fill(
            hidden_pairs(n, rule.window, query.device), -math.inf
        )
        if rule.sinks is not None:
            sink = rule.sinks.to(scores.dtype).view(K, H // K, 1, 1).expand(-1, -1, n, 1)
            scores = torch.cat([scores, sink], dim=-1)
        p = torch.softmax(scores.float(), dim=-1)[..., :n].to(query.dtype)
        p = torch.dropout(p, rule.dropout, train=True)
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
