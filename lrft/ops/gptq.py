"""Rounding a matrix to few bits on affine grids, with error feedback: GPTQ, groups of columns and act-order.

    scale = (high - low) / (2^bits - 1),  zero = round(-low / scale),  q = clamp(round(w / scale) + zero, 0, 2^bits - 1)
    U = upper Cholesky factor of (H + 0.01 mean(diag H) I)^-1,  w_j -= (w_k - scale (q_k - zero)) U_kj / U_kk for j > k

with low and high the ends of a row's numbers in a group of columns, 0 among them, taken as they stand when the group's
first column is reached; columns go by falling diagonal of H.
Source: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323, and the arithmetic of GPTQ-for-LLaMa's quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.bits import pack_bits, unpack_bits

DAMPING = 0.01
TINY = 1e-30


@dataclass(frozen=True)
class Rounded:
    """A matrix (rows, n) in few bits.

    Attributes:
        codes: (rows, n) uint8, the columns in the order of `order`.
        scale, zero: (rows, groups) of `group` columns each, float and uint8.
        order: (n,), which column stands where.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    order: Tensor
    bits: int
    group: int

    def dense(self) -> Tensor:
        """The matrix as it decodes, (rows, n) float32."""
        of = torch.arange(self.codes.shape[1]) // self.group
        found = torch.empty(self.codes.shape)
        values = self.codes.float() - self.zero.float()[:, of]
        found[:, self.order.long()] = self.scale.float()[:, of] * values
        return found

    def packed(self) -> dict[str, Tensor]:
        """What a file holds: codes and zeros `bits` bits each."""
        parts = {"codes": _packed(self.codes, self.bits), "zero": _packed(self.zero, self.bits)}
        straight = torch.equal(self.order.long(), torch.arange(len(self.order)))
        short = torch.int16 if len(self.order) < 2**15 else torch.int32
        order = {} if straight else {"order": self.order.to(short)}
        return {**parts, "scale": self.scale, **order}

    @classmethod
    def unpacked(cls, held: dict[str, Tensor], columns: int, bits: int, group: int) -> Rounded:
        """The same back from a file."""
        groups = held["scale"].shape[1]
        return cls(
            _unpacked(held["codes"], columns, bits),
            held["scale"],
            _unpacked(held["zero"], groups, bits),
            held.get("order", torch.arange(columns)),
            bits,
            group,
        )


def grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every row of x (rows, n), each (rows,) float32; of a row of zeros as for -1 to 1."""
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    nothing = (low == 0) & (high == 0)
    low, high = torch.where(nothing, -1.0, low), torch.where(nothing, 1.0, high)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def to_grid(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, in the shape that x (rows, ...) has with scale and zero."""
    return torch.clamp(torch.round(x / scale) + zero, 0, 2**bits - 1)


def gptq(
    weight: Tensor,
    moment: Tensor | None,
    bits: int,
    group: int = 128,
    by_size: bool = True,
    scale_dtype: torch.dtype = torch.float32,
) -> Rounded:
    """Round `weight` (rows, n).

    Args:
        moment: H = X^T X (n, n) of what the matrix is multiplied with; None rounds to nearest.
        by_size: columns go by falling diagonal of H, else in their order.
        scale_dtype: what scales are rounded to before anything is rounded against them.
    """
    columns = weight.shape[1]
    H = torch.eye(columns, dtype=torch.float64) if moment is None else moment.detach().cpu().double().clone()
    W = weight.detach().cpu().float().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1.0
    W[:, dead] = 0.0
    order = torch.arange(columns)
    if by_size and moment is not None:
        order = H.diagonal().argsort(descending=True, stable=True)
    W, H = W[:, order], H[order][:, order]
    H.diagonal().add_(DAMPING * float(H.diagonal().mean()))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    U = torch.linalg.cholesky(inverse, upper=True).float()
    scales, zeros, codes = [], [], torch.empty(W.shape, dtype=torch.uint8)
    for k in range(columns):
        if k % group == 0:
            scale, zero = grid(W[:, k : k + group], bits)
            scale = scale.to(scale_dtype).float().clamp(min=TINY)
            scales.append(scale.to(scale_dtype))
            zeros.append(zero.to(torch.uint8))
        codes[:, k] = to_grid(W[:, k], scale, zero, bits).to(torch.uint8)
        error = (W[:, k] - scale * (codes[:, k].float() - zero)) / U[k, k]
        if moment is not None and k + 1 < columns:
            W[:, k + 1 :].addr_(error, U[k, k + 1 :], alpha=-1)
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1), order, bits, group)


def _packed(codes: Tensor, bits: int) -> Tensor:
    places = torch.arange(bits, dtype=torch.uint8)
    return pack_bits(((codes[..., None] >> places) & 1).flatten(1).bool())


def _unpacked(held: Tensor, count: int, bits: int) -> Tensor:
    digits = unpack_bits(held, count * bits).unflatten(1, (count, bits)).to(torch.uint8)
    found: Tensor = (digits << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return found
