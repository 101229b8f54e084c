"""Matrix decompositions shared by methods: float32, deterministic in the ambient seed, cast by the caller."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """What the forward pass of an autograd function leaves for its backward pass; a subclass adds what it keeps."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


Iterations = int | Literal["exact"] | None
"""Subspace iterations of a randomised SVD; `exact`; or None: exact up to `LARGEST_EXACT`, `ITERATIONS` above."""
# Exact, one matrix of side 4,096 takes a CPU a minute or two, and a model of 8e9 numbers has two hundred.
LARGEST_EXACT = 2048
ITERATIONS = 16


def truncated_svd(
    matrix: Tensor, rank: int, niter: Iterations = "exact", extra: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, rank), S (rank) and Vh (rank, n) of the leading singular triples, in float32.

    Args:
        matrix: (m, n).
        niter: see `Iterations`; a large matrix gets `rank` more columns at least where it is None.
        extra: columns of the random subspace beyond `rank`; more makes the randomised one more exact.
    """
    matrix = matrix.float()
    if niter is None and min(matrix.shape) > LARGEST_EXACT:
        niter, extra = ITERATIONS, max(extra, rank)
    if niter is None or niter == "exact":
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :rank], S[:rank], Vh[:rank]
    U, S, V = torch.svd_lowrank(matrix, q=min(rank + extra, *matrix.shape), niter=niter)
    return U[:, :rank], S[:rank], V[:, :rank].mT


def in_shape_of(y: Tensor, x: Tensor) -> Tensor:
    """Y (tokens, out) as (..., out) with the leading shape of x, for the result of an autograd function.

    A view would be one by name as well, and autograd forbids models to change such an output in place.
    """
    view: Tensor = torch.ops.aten._unsafe_view(y, [*x.shape[:-1], y.shape[-1]])
    return view
