"""Subspaces of a gradient matrix (m, n): chosen columns, rows or entries, or a projector on one side."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from lrft.methods.optim._projection import SIDES, back, compressed, held, project, svd_basis

AXIS = {"rows": 0, "columns": 1}
PROJECTORS = {"svd", "random", "randperm"}

Subspace = dict[str, Tensor]
"""Of coordinates `index`: (k,), or (2, k) rows and columns of single entries, int64. Of a projector `left` (m, r) or
`right` (r, n), with orthonormal columns or rows."""

Generators = Callable[[str, int], torch.Generator]
"""(name of the tensor, empty for `block`; count of the choices before) -> a generator on the CPU."""


def length(shape: torch.Size, choice: str, side: str) -> int:
    """How many coordinates there are to choose from, or the dimension that a projector compresses."""
    if choice in PROJECTORS:
        return shape[SIDES.index(compressed(shape, side)[0])]
    return shape[AXIS[choice]] if choice in AXIS else shape[0] * shape[1]


def size(shape: torch.Size, choice: str, side: str, density: float) -> int:
    """How many coordinates are chosen (truncated), or the rank of the projector (rounded)."""
    share = length(shape, choice, side) * density
    return round(share) if choice in PROJECTORS else int(share)


def draw(grad: Tensor, choice: str, side: str, density: float, generator: torch.Generator) -> Subspace:
    """A new subspace for a gradient (m, n), on its device.

    Args:
        generator: on the CPU, so that a seed means the same coordinates on every device.
    """
    k, count = size(grad.shape, choice, side, density), length(grad.shape, choice, side)
    if choice == "svd":
        return svd_basis(grad, k, side)
    if choice in PROJECTORS:
        (where,) = compressed(grad.shape, side)
        return {where: _projector(grad, choice, where, (count, k), generator)}
    chosen = torch.randperm(count, generator=generator)[:k].clone()
    if choice == "randk":
        chosen = torch.stack([chosen // grad.shape[1], chosen % grad.shape[1]])
    return {"index": chosen.to(grad.device)}


def down(grad: Tensor, choice: str, subspace: Subspace) -> Tensor:
    """The part of the gradient in the subspace, in the subspace's own shape."""
    if choice in PROJECTORS:
        return project(grad, subspace)
    index = subspace["index"]
    return grad[index[0], index[1]] if choice == "randk" else grad.index_select(AXIS[choice], index)


def add_up(param: Tensor, update: Tensor, choice: str, subspace: Subspace) -> None:
    """Add an update of the subspace's shape to the parameter (m, n), in place."""
    if choice in PROJECTORS:
        param.add_(back(update, subspace))
        return
    index = subspace["index"]
    if choice == "randk":
        param.index_put_((index[0], index[1]), update, accumulate=True)
    else:
        param.index_add_(AXIS[choice], index, update)


def outside(grad: Tensor, part: Tensor, choice: str, subspace: Subspace) -> Tensor:
    """The gradient less its `part` in the subspace, (m, n); exactly 0 wherever coordinates are chosen.

    A projector of full rank leaves rounding errors only, whose signs would be updates of full size.
    """
    if choice in PROJECTORS:
        (projector,) = (held(subspace) or {}).values()
        complete = projector.shape[0] == projector.shape[1]
        return torch.zeros_like(grad) if complete else grad - back(part, subspace)
    index = subspace["index"]
    if choice == "randk":
        return grad.index_put((index[0], index[1]), grad.new_zeros(()))
    return grad.index_fill(AXIS[choice], index, 0.0)


def active_blocks(count: int, active: int, period: int, order: str, generator: torch.Generator) -> list[int]:
    """Which `active` of `count` matrices have moments in a period, counted from 0; `mirror` takes both ends."""
    if order == "random":
        return sorted(torch.randperm(count, generator=generator)[:active].tolist())
    if order == "mirror":
        outer = [i % (count // 2) for i in range(period * active // 2, (period + 1) * active // 2)]
        return sorted({*outer, *(count - 1 - i for i in outer)})
    turn = {i % count for i in range(period * active, (period + 1) * active)}
    return sorted(turn if order == "ascending" else {count - 1 - i for i in turn})


def seeded(seed: int) -> Generators:
    """Generators that depend on these three alone: neither order nor device matters, and none needs saving."""

    def generator(name: str, period: int) -> torch.Generator:
        mixed = (seed * 1_000_003 + period) * 4_294_967_291 + zlib.crc32(name.encode())
        return torch.Generator().manual_seed(mixed % 2**63)

    return generator


def _projector(
    grad: Tensor, choice: str, side: str, shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """`left` (m, r) or `right` (r, n) in the gradient's dtype, from `shape`, the compressed dimension and r."""
    count, rank = shape
    if choice == "randperm":
        chosen = torch.randperm(count, generator=generator)[:rank].to(grad.device)
        basis = torch.eye(count, device=grad.device).index_select(1, chosen)
    else:
        # The shape in which torch.nn.init.orthogonal_ draws, so that a generator gives the same projector.
        normal = torch.randn((rank, count) if side == "right" else shape, generator=generator).to(grad.device)
        Q, R = torch.linalg.qr(normal.mT if side == "right" else normal)
        basis = Q * R.diagonal().sign()
    rows = basis.mT if side == "right" else basis
    return rows.to(grad.dtype, copy=True, memory_format=torch.contiguous_format)
