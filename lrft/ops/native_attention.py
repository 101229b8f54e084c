"""Causal attention within documents by the kernels of this machine, which keep no probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrft.ops.attention_blocks import Rule
from lrft.ops.linalg import Context
from lrft.ops.native import Kernels, halves, in_rows, kernels_for
from lrft.ops.products import widens

Documents = tuple[tuple[int, int, int], ...]
LANES = 16  # a head's dimension is a multiple of
PARTS = 8  # of a few documents, with sums of their own
ROOM = 2**28  # bytes that these have at most


def native_attend(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, rule: Rule
) -> Tensor | None:
    """As `lrft.ops.attention.attend`; None where the kernels do not compute it.

    They take heads of keys and values of one dimension, a multiple of 16, and neither a soft cap nor dropout nor sinks.
    Where bfloat16 is multiplied faster than float32, they are the slower way.
    """
    with torch.no_grad():
        kernels = kernels_for(query, key, value)
    if kernels is None or not documents or not query.numel():
        return None
    if why := _why_not(query, value, rule):
        kernels.went_without("attention", why)
        return None
    out: Tensor = _Attention.apply(query, key, value, documents, rule, kernels)  # type: ignore[no-untyped-call]
    return out


def _why_not(query: Tensor, value: Tensor, rule: Rule) -> str:
    """Why the kernels do not compute it; an empty text where they do."""
    width = query.shape[-1]
    there = {
        "its scores have a soft cap": rule.softcap is not None,
        "it has dropout": rule.dropout != 0,
        "it has sinks": rule.sinks is not None,
        f"keys have {width} numbers a head and values {value.shape[-1]}": width != value.shape[-1],
        f"heads have {width} numbers, no multiple of {LANES}": width % LANES != 0,
        f"{query.dtype} is multiplied faster than float32 here".removeprefix("torch."): not widens(
            query.dtype
        ),
    }
    return next((why for why, applies in there.items() if applies), "")


class _Kept(Context):
    kernels: Kernels
    rule: Rule
    documents: Documents


class _Attention(torch.autograd.Function):
    """Saves queries, keys, values, what was attended to, and a logarithm for every query and head."""

    @staticmethod
    def forward(
        ctx: _Kept,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Documents,
        rule: Rule,
        kernels: Kernels,
    ) -> Tensor:
        query, key, value = (in_rows(x) for x in (query, key, value))
        B, H, L, D = query.shape
        out, logs = query.new_zeros(B, L, H, D), query.new_empty(B, H, L, dtype=torch.float32)
        of = torch.tensor(documents)
        given = _given(query, key, value, out, len(documents), rule.window)
        kernels("attend", given, of, query, key, value, out, logs, halves(query), float(rule.scale))
        ctx.kernels, ctx.rule, ctx.documents = kernels, rule, documents
        ctx.save_for_backward(query, key, value, out, logs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logs = ctx.saved_tensors
        given = _given(query, key, value, out, len(ctx.documents), ctx.rule.window)
        of = torch.tensor(ctx.documents)
        pulled = [torch.zeros_like(x) for x in (query, key, value)]
        buffers = _buffers(len(ctx.documents) * key.shape[1], 8 * key.numel())
        sums = query.new_zeros(buffers, 2, key.numel(), dtype=torch.float32)
        tensors = query, key, value, out, logs, grads[0].contiguous(), *pulled, sums
        scale = float(ctx.rule.scale)
        ctx.kernels("attend_back", given, of, *tensors, buffers, halves(query), scale)
        return *pulled, None, None, None


def _buffers(pairs: int, size: int) -> int:
    """How many sums of gradients there are: one, where threads have documents and heads of their own to go through.

    It does not follow the number of threads, so that no bit does.

    Args:
        pairs: of a document and a head of keys.
        size: bytes of one.
    """
    return 1 if pairs >= PARTS or PARTS * size > ROOM else PARTS


def _given(query: Tensor, key: Tensor, value: Tensor, out: Tensor, documents: int, window: int) -> Tensor:
    """What kernels/attention.cpp reads as `Given`."""
    (B, H, L, D), K = query.shape, key.shape[1]
    strides = [x.stride()[:3] for x in (query, key, value, out.transpose(1, 2))]
    return torch.tensor([B, H, K, L, D, window, documents, *(step for three in strides for step in three)])
