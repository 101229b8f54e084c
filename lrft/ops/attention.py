"""Causal attention within each document of a batch: no mask is built and nothing across documents is computed.

Shapes: H query heads, K key/value heads, G = H / K, n tokens of a document, D and D_v head dimensions. The G query
heads of a group are folded into rows, so keys and values are never repeated. Of a short document the probabilities are
kept for the backward pass, in the input's precision; a long one goes by blocks (`attention_blocks`) that keep none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.ops import attention_blocks as blocks
from lrft.ops.attention_blocks import LONG, Rule
from lrft.ops.linalg import Context as Kept
from lrft.ops.native_attention import native_attend
from lrft.ops.products import working

Documents = tuple[tuple[int, int, int], ...]


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule) -> Tensor:
    """Softmax attention of every document to itself alone; what belongs to none gets zeros.

    Args:
        query: (B, H, L, D); key: (B, K, L, D); value: (B, K, L, D_v).
        documents: (row, start, end) of each document.

    Returns:
        (B, L, H, D_v).
    """
    if (whole := native_attend(query, key, value, documents, rule)) is not None:
        return whole
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
        work = working(query)
        mask = query.new_zeros(longest, longest, dtype=work)
        mask.masked_fill_(hidden_pairs(longest, rule.window, query.device), -math.inf)
        keep = any(ctx.needs_input_grad[:3])
        probabilities = []
        drawn = _generator(rule, seed, query.device)
        for (row, start, end), n in zip(documents, lengths, strict=True):
            q, k, v = (x[row, :, start:end] for x in (query, key, value))
            if n > LONG:
                blocks.attend(q, k, v, rule, drawn, out[row, start:end])
                continue
            q, k, v = q.to(work), k.to(work), v.to(work)
            for block in blocks.blocks_of(n, rule.window):
                at, keys = slice(block.start, block.end), slice(block.first, block.end)
                p = _probabilities(q[:, at], k[:, keys], rule, mask[at, keys])
                attended = torch.bmm(p, v[:, keys]).view(H, block.end - block.start, -1)
                out[row, start:end][at] = attended.transpose(0, 1)
                if keep:
                    probabilities.append(p.to(query.dtype))
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
        drawn, work = _generator(rule, ctx.seed, query.device), working(query)
        kept = iter(probabilities)
        for row, start, end in ctx.documents:
            q, k, v = (x[row, :, start:end] for x in (query, key, value))
            do = grads[0][row, start:end]
            if end - start > LONG:
                pulled = blocks.pull(do, q, k, v, rule, drawn, d_sinks)
            else:
                do, q, k, v = do.to(work), q.to(work), k.to(work), v.to(work)
                pulled = _pull(do, q, k, v, rule, kept, d_sinks)
            for whole, part in zip((dq, dk, dv), pulled, strict=True):
                whole[row, :, start:end] = part
        given = None if d_sinks is None or sinks is None else d_sinks.to(sinks.dtype)
        return dq, dk, dv, None, None, None, given


def _generator(rule: Rule, seed: int, device: torch.device) -> torch.Generator | None:
    """What dropout in blocks is drawn from, alike in forward and backward."""
    return torch.Generator(device).manual_seed(seed) if rule.dropout > 0 else None


def _probabilities(q: Tensor, k: Tensor, rule: Rule, mask: Tensor) -> Tensor:
    """(K, G b, w) of a block, from (H, b, D), (K, w, D) and what is added to its scores (b, w)."""
    (H, b, D), K = q.shape, k.shape[0]
    # One pass: filling a mask in half precision takes as long as all products of the attention.
    added = mask.repeat(H // K, 1).expand(K, -1, -1)
    scores = torch.baddbmm(added, q.reshape(K, H // K * b, D), k.mT, alpha=rule.scale)
    return blocks.softmax(scores, rule.sinks)


def _pull(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Rule,
    kept: Iterator[Tensor],
    d_sinks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (H, n, D), k and v of one short document, from those of what it attended to (n, H, D_v).

    Args:
        kept: the probabilities of its blocks, first to last.
        d_sinks: that of the sinks is added to it.
    """
    parts = list(blocks.blocks_of(q.shape[1], rule.window))
    if len(parts) == 1:
        return _pull_block(do, q, k, v, rule, next(kept).to(q.dtype), d_sinks)
    exact = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
    for block in parts:
        at, keys = slice(block.start, block.end), slice(block.first, block.end)
        p = next(kept).to(q.dtype)
        dq[:, at], more_k, more_v = _pull_block(do[at], q[:, at], k[:, keys], v[:, keys], rule, p, d_sinks)
        dk[:, keys] += more_k
        dv[:, keys] += more_v
    return dq, dk, dv


def _pull_block(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, rule: Rule, p: Tensor, d_sinks: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of one block of queries (H, b, D) and the keys (K, w, D) that they see."""
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
