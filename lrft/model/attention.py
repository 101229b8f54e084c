"""Attention over packed documents, one document at a time: no mask is built and nothing across documents is computed.

Registered with transformers as `segmented`, beside the stock backends. Shapes: H query heads, K key/value heads,
G = H / K, n tokens of a document, D head dimension. The G query heads of a group are folded into rows, so keys and
values are never repeated, and probabilities are kept in the input's precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Documents = tuple[tuple[int, int, int], ...]

# What some layers hand to their attention function that changes scores, and is not known here.
CHANGE_SCORES = ("position_bias", "attention_bias", "head_mask", "indices", "block_indices", "sinks")
WINDOWS: set[int] = (
    set()
)  # windows that layers computed with, and that models asked masks for, since `listening`
MASKS: set[int] = set()


class Unsupported(Exception):
    """A layer wants attention that this backend does not compute; the message says which layer and what."""


@contextmanager
def listening() -> Iterator[None]:
    """Compare what a model asks of its masks with what its layers compute, since no mask is built here.

    Raises:
        Unsupported: the model asked for masks with a window or in chunks that no layer told of.
    """
    WINDOWS.clear()
    MASKS.clear()
    yield
    if untold := MASKS - WINDOWS:
        raise Unsupported(f"a mask of {max(untold)} tokens is asked for that no attention layer tells of")


def register() -> None:
    """Make `segmented` known to transformers; doing it twice is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("segmented", segmented_attention)
    AttentionMaskInterface.register("segmented", _no_mask)


def _no_mask(*args: object, local_size: int | None = None, use_vmap: bool = False, **kwargs: object) -> None:
    """The documents say who sees whom; a dense mask would only repeat it. Remembers the window asked for.

    Raises:
        Unsupported: the model combines the causal mask with one of its own.
    """
    if use_vmap:  # transformers' sign of a mask function that a model brought
        raise Unsupported("the model masks pairs of tokens by a rule of its own")
    if local_size is not None:
        MASKS.add(local_size)


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
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    documents: Documents | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document; padding yields zeros.

    Args:
        query: (B, H, L, D); key and value: (B, K, L, D).
        s_aux: (H,) scores of a key that has no value and takes its share of the softmax (attention sinks).
        documents: (row, start, end) of each document.

    Returns:
        (B, L, H, D), and None for the weights.

    Raises:
        Unsupported: the layer asks for something that is not computed here.
    """
    if documents is None:
        raise RuntimeError(
            "segmented attention needs the documents of the batch; call the model through `hidden`"
        )
    unknown = [name for name in CHANGE_SCORES if kwargs.get(name) is not None]
    if attention_mask is not None or is_causal is False or unknown:
        what = "a mask of its own" if not unknown else unknown[0]
        raise Unsupported(
            f"{type(module).__name__} asks for {what}, which segmented attention does not compute"
        )
    asked = sliding_window or 0
    WINDOWS.add(asked)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is not None or dropout > 0:
        return _compose(query, key, value, documents, scale, asked, softcap, dropout, s_aux), None
    out: Tensor = _Segmented.apply(query, key, value, documents, scale, asked, s_aux)  # type: ignore[no-untyped-call]
    return out, None


def _hidden_pairs(n: int, window: int, device: torch.device) -> Tensor:
    """(n, n) bool, True where the query may not see the key."""
    hidden = torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)
    return hidden if window <= 0 or window >= n else hidden | torch.ones_like(hidden).tril_(-window)


class Context(FunctionCtx):
    """What the forward pass keeps for the backward pass."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    documents: Documents
    scale: float
    sinks: Tensor | None


class _Segmented(torch.autograd.Function):
    """Softmax attention per document, keeping only the probabilities for the backward pass."""

    @staticmethod
    def forward(
        ctx: Context,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Documents,
        scale: float,
        window: int,
        sinks: Tensor | None,
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
            p = _softmax(scores, sinks)
            out[row, start:end] = torch.bmm(p, value[row, :, start:end]).view(H, n, -1).transpose(0, 1)
            if keep:
                probabilities.append(p)
        ctx.documents, ctx.scale, ctx.sinks = documents, scale, sinks
        ctx.save_for_backward(query, key, value, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *probabilities = ctx.saved_tensors
        H, K, D = query.shape[1], key.shape[1], query.shape[-1]
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        sinks, asked = ctx.sinks, ctx.needs_input_grad[6]
        ds_aux = torch.zeros_like(sinks, dtype=torch.float32) if sinks is not None and asked else None
        for (row, start, end), p in zip(ctx.documents, probabilities, strict=True):
            n = end - start
            q = query[row, :, start:end].reshape(K, H // K * n, D)
            do = grads[0][row, start:end].transpose(0, 1).reshape(K, H // K * n, -1)
            dv[row, :, start:end] = torch.bmm(p.mT, do)
            dp = torch.bmm(do, value[row, :, start:end].mT)
            if ds_aux is not None:  # the sink's share of the softmax, whose value is zero
                missing, taken = 1 - p.sum(-1, dtype=torch.float32), (dp * p).sum(-1, dtype=torch.float32)
                ds_aux -= (missing * taken).view(H, n).sum(-1)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scale)
            dq[row, :, start:end] = torch.bmm(ds, key[row, :, start:end]).view(H, n, D)
            dk[row, :, start:end] = torch.bmm(ds.mT, q)
        return (
            dq,
            dk,
            dv,
            None,
            None,
            None,
            None if ds_aux is None or sinks is None else ds_aux.to(sinks.dtype),
        )


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Probabilities of (K, G n, n) scores; with sinks (K G,) each row leaves its sink's share out."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    rows = scores.shape[1] * scores.shape[0] // sinks.numel()
    sink = sinks.detach().to(scores.dtype).repeat_interleave(rows).view(*scores.shape[:2], 1)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    shares = (scores - top).exp_()
    return shares.div_(shares.sum(-1, keepdim=True) + (sink - top).exp_())


def _compose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int,
    softcap: float | None,
    dropout: float,
    sinks: Tensor | None,
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
        if sinks is not None:
            sink = sinks.to(scores.dtype).view(K, H // K, 1, 1).expand(-1, -1, n, 1)
            scores = torch.cat([scores, sink], dim=-1)
        p = torch.softmax(scores.float(), dim=-1)[..., :n].to(query.dtype)
        p = torch.dropout(p, dropout, train=True)
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
