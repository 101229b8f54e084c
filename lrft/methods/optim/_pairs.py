"""The two factors of a low-rank term s B A: which parameters belong together, and least squares over them.

B (m, r), A (r, n). The r x r eigendecompositions are computed in float32 at least, whatever the factors are stored in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.params import ParamInfo


@dataclass(frozen=True)
class Pair:
    """A trained B, its A, trained or frozen, and the s of s B A."""

    A: Tensor
    B: Tensor
    scaling: float


def pairs_of(params: list[ParamInfo]) -> list[Pair]:
    """One pair for every `lora_B`, in their order.

    Raises:
        ValueError: a `lora_B` has no partner, or the two are no matrices (m, r) and (r, n).
    """
    found = []
    for info in params:
        if info.role != "lora_B":
            continue
        A = info.partner
        if A is None:
            raise ValueError(
                f"{info.name} is a lora_B whose other factor is not known; give ParamInfo its partner, "
                "or choose optimizer adamw"
            )
        if A.ndim != 2 or info.param.ndim != 2 or info.param.shape[1] != A.shape[0]:
            raise ValueError(
                f"{info.name} {tuple(info.param.shape)} and its partner {tuple(A.shape)} are not the factors "
                "(out, rank) and (rank, in) of one product; choose optimizer adamw"
            )
        found.append(Pair(A, info.param, info.scaling))
    return found


@dataclass(frozen=True)
class Gram:
    """A symmetric positive semidefinite (r, r) matrix as U diag(l) U^T, with the inverse of it plus a damping."""

    values: Tensor
    vectors: Tensor
    inverse: Tensor


def gram(rows: Tensor, damping: float) -> Gram:
    """The Gram matrix of r rows (r, n), and pinv(rows rows^T + damping I).

    As torch.linalg.pinv does, directions under r eps of the largest count as absent: their inverse is noise.
    """
    rows = wide(rows)
    values, U = torch.linalg.eigh(rows @ rows.mT)
    values = values.clamp_min(0)
    damped = values + damping
    smallest = len(values) * torch.finfo(values.dtype).eps * damped.amax()
    inverse = (U * torch.where(damped > smallest, 1 / damped, 0)) @ U.mT
    return Gram(values, U, inverse)


def sylvester(left: Gram, right: Gram, C: Tensor, smallest: float) -> Tensor:
    """X (r, r) with L X + X R = C: in the two eigenbases every entry is divided by the sum of its eigenvalues.

    Args:
        smallest: bound from below on that sum; where L and R vanish together, so does C.
    """
    rotated = left.vectors.mT @ C @ right.vectors
    sums = (left.values[:, None] + right.values[None, :]).clamp_min(smallest)
    return left.vectors @ (rotated / sums) @ right.vectors.mT


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
