"""The Walsh-Hadamard rotation: every number is spread over all others, with signs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


class Rotation:
    """R = diag(s) H of vectors of `width`: signs from a generator that the width seeds, so that a width has one R.

    H is block-diagonal, its blocks Hadamard matrices of the largest power of two that divides the width, over its
    square root: R is orthogonal.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.order = width & -width
        generator = torch.Generator().manual_seed(width)
        self.signs = torch.randint(0, 2, (width,), generator=generator, device="cpu") * 2 - 1
        power = self.order.bit_length() - 1
        self.left, self.right = hadamard(2 ** (power // 2)), hadamard(2 ** (power - power // 2))

    def turn(self, x: Tensor) -> Tensor:
        """X R, (..., width)."""
        return self._spread(x * self.signs.to(x))

    def turn_back(self, x: Tensor) -> Tensor:
        """X R^T, (..., width)."""
        return self._spread(x) * self.signs.to(x)

    def _spread(self, x: Tensor) -> Tensor:
        """X H, which is symmetric; by two factors of H, as H of order a b is the Kronecker product of those of a, b."""
        blocks = x.reshape(-1, len(self.left), len(self.right))
        spread: Tensor = self.left.to(x) @ blocks @ self.right.to(x)
        scaled: Tensor = spread.view(x.shape) * self.order**-0.5
        return scaled


def hadamard(order: int) -> Tensor:
    """Sylvester's Hadamard matrix (order, order) of a power of two, entries 1 and -1."""
    matrix = torch.ones(1, 1, device="cpu")  # also while a model without weights is made
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@cache
def rotation_of(width: int) -> Rotation:
    """The one rotation of a width."""
    return Rotation(width)
