"""Spectra of matrices: singular triples of dense ones and of thin products, ranks by several measures, and angles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Triples(NamedTuple):
    """Singular triples of a matrix (out, in), the largest first: U (out, k), S (k,), V (in, k)."""

    U: Tensor
    S: Tensor
    V: Tensor


def decompose(matrix: Tensor) -> Triples:
    """All min(out, in) singular triples of a dense matrix (out, in), in its own precision."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Triples(U, S, Vh.mT)


def decompose_product(A: Tensor, B: Tensor) -> Triples:
    """Singular triples of B A, for A (k, in) and B (out, k), in float64 and without forming the (out, in) product.

    B = Q_b R_b and A^T = Q_a R_a, so that B A = Q_b (R_b R_a^T) Q_a^T and only the small core is decomposed. There are
    min(k, out) x min(k, in) numbers in the core, so at most min(k, out, in) triples.
    """
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().mT)
    core = decompose(Rb @ Ra.mT)
    return Triples(Qb @ core.U, core.S, Qa @ core.V)


def numerical_rank(values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values exceed max(out, in) eps sigma_1, as torch.linalg.matrix_rank counts a float32 matrix."""
    largest = float(values.max()) if len(values) else 0.0
    return int((values > max(shape) * torch.finfo(torch.float32).eps * largest).sum())


def stable_rank(values: Tensor) -> float:
    """|M|_F^2 / sigma_1^2 (Rudelson and Vershynin, 2007); 0 of a matrix of zeros."""
    largest = float(values.max()) if len(values) else 0.0
    return float(values.square().sum()) / largest**2 if largest else 0.0


def entropy_rank(values: Tensor) -> float:
    """Exponential of the entropy of sigma_i / sum sigma (Roy and Vetterli, 2007, "The effective rank"); 0 of zeros."""
    total = values.double().sum()
    if not total:
        return 0.0
    shares = values.double() / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def energy_rank(values: Tensor, share: float = 0.99) -> int:
    """How many of the largest singular values hold `share` of the sum of squares; 0 of zeros."""
    energy = values.double().sort(descending=True).values.square().cumsum(0)
    if not len(values) or not energy[-1]:
        return 0
    return int((energy < share * energy[-1]).sum()) + 1


def principal_angles(P: Tensor, Q: Tensor) -> Tensor:
    """Angles (min(p, q),) in degrees, ascending, between the spans of P (n, p) and Q (n, q) with orthonormal columns.

    Small ones are taken from their sines, large ones from their cosines (Bjorck and Golub, 1973): each is exact where
    the other is not.
    """
    if P.shape[1] > Q.shape[1]:
        P, Q = Q, P
    P, Q = P.double(), Q.double()
    inside = Q.mT @ P
    cosines = torch.linalg.svdvals(inside).clamp(max=1)
    sines = torch.linalg.svdvals(P - Q @ inside).flip(0).clamp(max=1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos()).rad2deg()


def likeness(old: Tensor, new: Tensor) -> Tensor:
    """The largest |cosine| (top,) of each column of `new` (n, top) with any column of `old` (n, k), all of length 1."""
    found: Tensor = (old.mT @ new).abs().amax(0)
    return found
