"""A low-rank term whose components each token weighs, as one autograd node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrft.ops.dropout import Dropped, clear, drop
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import multiplied, widen, working

Parts = Sequence[tuple[int, float]]
"""Of components that follow one another: how many, and the probability that an entry of their input is dropped."""


def gated_low_rank(
    x: Tensor, A: Tensor, B: Tensor, gates: Tensor, dtype: torch.dtype | None = None, parts: Parts = ()
) -> Tensor:
    """(gates * (x A^T)) B^T, (..., in) -> (..., out): a LoRA of rank R whose components each token weighs.

    Experts are stacked: rows of A (R, in) and columns of B (out, R) that belong to an expert share its gate. At the
    ranks of adapters, forming all experts' products costs less than sending tokens to each apart, and a gate of 0
    takes the product and its gradient away exactly. Of what dropout left of x nothing is kept for the backward pass
    but where it dropped.

    Args:
        gates: (..., R) or (R,), scaling included; products with them are in float32.
        dtype: precision of the products, by default that of x.
        parts: of each expert, where inputs are dropped: every expert draws anew.
    """
    seen = x.to(dtype or x.dtype)
    flat = seen.reshape(-1, seen.shape[-1])
    draws = [None if p == 0 else drop(flat, p, shared=False) for _, p in parts]
    rows = gates if gates.dim() == 1 else gates.expand(*x.shape[:-1], len(A)).reshape(-1, len(A))
    y: Tensor = _GatedMatmul.apply(flat, A, B, rows, parts or ((len(A), 0.0),), draws or (None,))  # type: ignore[no-untyped-call]
    return in_shape_of(y.to(x.dtype), x)


class _Kept(Context):
    widths: list[int]
    factors: list[float | None]


class _GatedMatmul(torch.autograd.Function):
    """y = (G * t) B^T with t the products k_e d_e A_e^T side by side, d_e what dropout left of x, k_e its factor.

    Saves x, t, the gates and where was dropped. With u = dy B: dB = dy^T (G * t), dG = u * t, and with P = k_e G * u of
    an expert: dA_e = P^T d_e, dx = sum over the experts of P A_e, with zeros where was dropped.
    """

    @staticmethod
    def forward(
        ctx: _Kept,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        gates: Tensor,
        parts: Parts,
        draws: Sequence[Dropped | None],
    ) -> Tensor:
        work, wide = working(x), None
        ctx.widths = [width for width, _ in parts]
        ctx.factors = [None if one is None else one.factor for one in draws]
        products = []
        for one, rows in zip(draws, A.to(work).split(ctx.widths), strict=True):
            if one is None:
                wide = widen(x, work, "x") if wide is None else wide
                products.append(wide @ rows.mT)
            else:
                products.append((widen(one.kept, work, "kept") @ rows.mT).mul_(one.factor))
        t = products[0] if len(products) == 1 else torch.cat(products, 1)
        ctx.save_for_backward(x, A, B, gates, t.to(x.dtype), *(one.zeros for one in draws if one is not None))
        return ((t * gates).to(work) @ B.to(work).mT).to(x.dtype)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, gates, t, *zeros = ctx.saved_tensors
        work = working(x)
        dy = widen(grads[0].contiguous(), work, "dy0")
        u = dy @ B.to(work)
        d_gates = dB = None
        if ctx.needs_input_grad[3]:
            d_gates = u.to(gates.dtype) * t
            d_gates = d_gates.sum(0) if gates.dim() == 1 else d_gates
        if ctx.needs_input_grad[2]:
            dB = (dy.mT @ (t * gates).to(work)).to(B.dtype)
        p = (u * gates).to(work)
        dx, dA = _of_inputs(ctx, x, A, p, iter(zeros))
        return dx, dA, dB, d_gates, None, None


def _of_inputs(
    ctx: _Kept, x: Tensor, A: Tensor, p: Tensor, zeros: Iterator[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Dx (tokens, in) and dA (R, in) from P before its factors (tokens, R)."""
    work, wide = p.dtype, None
    dx: Tensor | None = None
    d_rows: list[Tensor] = []
    for factor, rows, part in zip(
        ctx.factors, A.to(work).split(ctx.widths), p.split(ctx.widths, 1), strict=True
    ):
        part, where = (part, None) if factor is None else (part * factor, next(zeros))
        if ctx.needs_input_grad[0]:
            one = multiplied(part, rows, x.dtype, "dx" if dx is None else "kept")
            one = one if where is None else clear(one, where)
            dx = one if dx is None else dx.add_(one)
        if ctx.needs_input_grad[1]:
            if where is None:
                wide = widen(x, work, "x") if wide is None else wide
                seen = wide
            else:
                seen = clear(_copy(x, work), where)
            d_rows.append(part.mT @ seen)
    dA = None if not d_rows else torch.cat(d_rows).to(A.dtype)
    return None if dx is None else dx.to(x.dtype), dA


def _copy(x: Tensor, work: torch.dtype) -> Tensor:
    """X in the working precision, row after row, which may be written to."""
    return x.clone(memory_format=torch.contiguous_format) if x.dtype == work else widen(x, work, "kept")
