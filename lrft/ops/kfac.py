"""Kronecker factors of curvature: sums of outer products, whole where they are small and of low rank where large."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NOTHING = 1e-12  # of the largest eigenvalue; what is below it is rounding, and its direction is noise


class Factor(NamedTuple):
    """A symmetric matrix (d, d) without negative eigenvalues, V diag(values) V^T: V (d, k), values (k,), k <= d."""

    vectors: Tensor
    values: Tensor

    def dense(self) -> Tensor:
        """The matrix itself, (d, d)."""
        return self.vectors * self.values @ self.vectors.mT


class Sum:
    """The sum of r r^T over all rows r that are added, in float64.

    Where `rank` is given, a root R (d, rank) with R R^T near the sum is kept instead of it: after every addition the
    leading `rank` singular triples of [R, rows^T], as the root U S. So of a sum whose rank is no larger nothing is
    lost, and else what is lost depends on which rows are added together.
    """

    def __init__(self, size: int, rank: int | None, device: torch.device | str = "cpu") -> None:
        self.rank = rank
        columns = size if rank is None else 0
        self.kept = torch.zeros(size, columns, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows (m, d)."""
        rows = rows.double()
        if self.rank is None:
            self.kept += rows.mT @ rows
            return
        together = torch.cat([self.kept.mT, rows])
        self.kept = _root(together, self.rank)

    def factor(self) -> Factor:
        """Eigenvectors and eigenvalues; of a root those that it has."""
        if self.rank is None:
            values, vectors = torch.linalg.eigh(self.kept)
            return Factor(vectors, values.clamp_min(0))
        values = self.kept.square().sum(0)
        used = values > NOTHING * values.max() if len(values) else values > 0
        return Factor(self.kept[:, used] / values[used].sqrt(), values[used])


def _root(rows: Tensor, rank: int) -> Tensor:
    """U S (d, k) of the leading singular triples of rows^T, through the smaller of the two products; k <= rank."""
    m, d = rows.shape
    if m <= d:
        root: Tensor = rows.mT @ torch.linalg.eigh(rows @ rows.mT).eigenvectors[:, -rank:]
        return root
    found = torch.linalg.eigh(rows.mT @ rows)
    root = found.eigenvectors[:, -rank:] * found.eigenvalues[-rank:].clamp_min(0).sqrt()
    return root
