"""Projections of a gradient matrix: the basis, the way down into its subspace and the way back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lrft.methods.optim._torch import State
from lrft.ops.linalg import truncated_svd

Basis = dict[str, Tensor]
"""`left` (m, r) and/or `right` (r, n), for a gradient (m, n). The keys say which side is compressed."""

Draw = Callable[[str, int, tuple[int, int]], Tensor]
"""(name of the tensor and of the side, count of the refresh, shape) -> standard normal numbers, float32, on CPU."""

SIDES = ("left", "right")


def project(grad: Tensor, basis: Basis) -> Tensor:
    """R = left^T G right^T, either factor left out where the basis lacks it: (m, r), (r, n) or (r, r)."""
    low = basis["left"].mT @ grad if "left" in basis else grad
    return low @ basis["right"].mT if "right" in basis else low


def back(low: Tensor, basis: Basis) -> Tensor:
    """Give left R right, (m, n): the transpose of `project`, a new tensor."""
    full = basis["left"] @ low if "left" in basis else low
    return full @ basis["right"] if "right" in basis else full


def rank_axis(basis: Basis) -> int:
    """The axis of R that has r entries, for a basis of one side."""
    return 0 if "left" in basis else 1


def held(state: State) -> Basis | None:
    """The basis kept in a parameter's state, or None."""
    return {side: state[side] for side in SIDES if side in state} or None


def compressed(shape: tuple[int, ...], side: str) -> tuple[str, ...]:
    """Which sides of an (m, n) matrix a setting compresses.

    `std` compresses the smaller dimension (n where they are equal), `reverse_std` the other, `full` both.
    """
    if side == "full":
        return SIDES
    if side in SIDES:
        return (side,)
    tall = shape[0] >= shape[1]
    return ("right",) if tall == (side == "std") else ("left",)


def svd_basis(grad: Tensor, rank: int, side: str) -> Basis:
    """The first r singular vectors of G, in G's dtype; r is at most min(m, n).

    The decomposition is done in float32. Signs are as it gives them.
    """
    u, _, vh = truncated_svd(grad, rank)
    vectors = {"left": u, "right": vh}
    # Copies, and of one memory layout: a view would keep all of U alive, and a product of a tensor loaded from a
    # file must be bit for bit that of the tensor saved.
    return {s: _copied(vectors[s], grad.dtype) for s in compressed(grad.shape, side)}


def orthogonal_basis(grad: Tensor, rank: int, side: str, name: str, refresh: int, draw: Draw) -> Basis:
    """Random orthonormal directions, r of each compressed side, uniformly distributed, in G's dtype."""
    found = {}
    for s in compressed(grad.shape, side):
        length = grad.shape[SIDES.index(s)]
        normal = _draw(draw, f"{name}.{s}", refresh, (length, min(rank, *grad.shape)), grad.device)
        q, triangle = torch.linalg.qr(normal)
        q = q * torch.where(
            triangle.diagonal() < 0, -1.0, 1.0
        )  # without it Q depends on QR's choice of signs
        found[s] = _copied(q if s == "left" else q.mT, grad.dtype)
    return found


def normal_basis(grad: Tensor, rank: int, side: str, name: str, refresh: int, draw: Draw) -> Basis:
    """Independent normal numbers of variance 1/r, in G's dtype: orthonormal only in the mean."""
    rank = min(rank, *grad.shape)
    found = {}
    for s in compressed(grad.shape, side):
        shape = (grad.shape[0], rank) if s == "left" else (rank, grad.shape[1])
        normal = _draw(draw, f"{name}.{s}", refresh, shape, grad.device)
        found[s] = (normal / math.sqrt(rank)).to(grad.dtype)
    return found


def seeded_draw(seed: int) -> Draw:
    """Draws that depend on the seed, the tensor's name and the refresh alone.

    Neither the place in a list of parameters nor the device matters, and no generator needs saving.
    """

    def draw(name: str, refresh: int, shape: tuple[int, int]) -> Tensor:
        digest = hashlib.sha256(f"{seed}/{name}/{refresh}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(shape, generator=generator)

    return draw


def _draw(draw: Draw, name: str, refresh: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """On the meta device only the shape counts, and drawing would take minutes for a large model."""
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return draw(name, refresh, shape).to(device)


def _copied(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return vectors.to(dtype, copy=True, memory_format=torch.contiguous_format)
