"""One step of the decompositions that share a weight out between a rounded base and a low-rank pair."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.frozen import Quantizer
from lrft.ops.linalg import Iterations, truncated_svd


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError where a matrix of this shape has fewer than `rank` singular values."""
    if rank > min(shape):
        raise ValueError(
            f"rank {rank} is more than a {tuple(shape)} matrix has singular values; use at most {min(shape)}"
        )


def leading_factors(
    matrix: Tensor,
    rank: int,
    niter: Iterations = None,
    *,
    extra: int = 0,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Factors:
    """A (rank, in) and B (out, rank), each with the roots of the singular values, B A nearest to `matrix` (out, in).

    Args:
        niter: as `truncated_svd` takes it, with `extra` more columns than the rank.
        weights: d1 (out, 1) and d2 (1, in), all positive; nearest then means |d1 * (matrix - B A) * d2|.
    """
    check_rank(rank, matrix.shape)
    seen = matrix if weights is None else weights[0] * matrix * weights[1]
    U, S, Vh = truncated_svd(seen, rank, niter, extra)
    root = S.sqrt()
    A, B = root[:, None] * Vh, U * root
    return (A, B) if weights is None else (A / weights[1], B / weights[0])


def stored_without(weight: Tensor, factors: Factors | None, quantize: Quantizer) -> Tensor:
    """What the base reads, (out, in) float32, when it stores W - B A; bit for bit as it is stored on attaching."""
    taken = 0 if factors is None else factors[1] @ factors[0]
    return quantize((weight.float() - taken).to(weight.dtype)).weight().float()


def set_factors(A: Tensor, B: Tensor, factors: Factors, scaling: float) -> None:
    """Write factors of the change into an adapter's A and B, in place, so that scaling * B A is their product."""
    root = float(scaling) ** 0.5
    A.copy_(factors[0] / root)
    B.copy_(factors[1] / root)


def norm(matrix: Tensor) -> float:
    """Frobenius norm."""
    return float(torch.linalg.norm(matrix))
