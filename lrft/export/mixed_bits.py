"""Delta-CoMe: a change of a weight as singular vectors, the leading ones in more bits than the rest.

    D = U S V^T,  D' = sum over groups g of  Q_b(U_g) S_g Q_b(V_g)^T,  b the bits of the group
    bits of U and V: (out + in) sum_g b_g c_g,  at most `ratio` * 16 out in

with c_g the columns of a group, first of all 2 in 8 bits, then 32 in 3, then as many in 2 as the budget has room for.
V_g^T is rounded by GPTQ against the layer's inputs X, then U_g against X V_g S_g with V_g as it was rounded. 16 bits
are float16, and are not rounded further.

Source: Ping et al., "Delta-CoMe", NeurIPS 2024, arXiv 2406.08903, and the authors' code (thunlp/Delta-CoMe), whose
groups, order and quantizer were read; its GPTQ is the one of GPTQ-for-LLaMa, which is not in the repository.
Departures: settled here: the columns of 2 bits follow from the budget and are 968 at 4096 x 4096, as there; at
4096 x 11008 1436, where the code writes 1428. S is float32, U and V are not rounded to bfloat16 before. X is measured
with the tuned layers of the block behind compressed blocks; the code measures each group with those before it, and then
hands on the outputs of a block as its own inputs for the next group. The code writes what it rounded back as dense
weights; here codes, scales and zero points are packed, and all their bytes are told: scales in float16 as
GPTQ-for-LLaMa packs them, after the codes are found, or in float32 where all are too small for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrft.ops.gptq import Rounded, gptq
from lrft.ops.linalg import truncated_svd

Groups = list[tuple[int, int]]
"""Bits and columns, in the order of the singular values."""

LEADING = ((8, 2), (3, 32))  # of the authors' run.sh; the rest of the budget is of `REST` bits
REST = 2
WIDE = 16
HALF = 2**-11  # what float16 rounds by
GROUP = 128  # numbers of a row that share a scale


@dataclass(frozen=True)
class Vectors:
    """One group: V (in, c) and U (out, c) in `bits`, S (c)."""

    bits: int
    U: Rounded | Tensor
    S: Tensor
    V: Rounded | Tensor

    def dense(self) -> Tensor:
        """U S V^T, (out, in) float32."""
        return (_values(self.U) * self.S) @ _values(self.V)

    def held(self) -> dict[str, Tensor]:
        """What a file holds, by name."""
        found = {"S": self.S}
        for name, part in (("U", self.U), ("V", self.V)):
            parts = part.packed() if isinstance(part, Rounded) else {"values": part}
            found |= {f"{name}.{key}": tensor for key, tensor in parts.items()}
        return found


def budget(out_features: int, in_features: int, ratio: float) -> Groups:
    """The groups of a matrix that has `ratio` of its 16-bit size for U and V; the leading ones first."""
    left = int(
        ratio * 16 * out_features * in_features / (out_features + in_features)
    )  # bits of a whole row of groups
    free, found = min(out_features, in_features), Groups()
    for bits, wanted in (*LEADING, (REST, free)):
        columns = min(wanted, left // bits, free)
        if columns > 0:
            found.append((bits, columns))
            left, free = left - bits * columns, free - columns
    return found


@torch.no_grad()
def compress(
    change: Tensor, groups: Sequence[tuple[int, int]], moment: Tensor | None = None
) -> list[Vectors]:
    """A change (out, in) as groups of singular vectors.

    Args:
        moment: X^T X (in, in) of the layer's inputs; None rounds to nearest.
    """
    total = min(sum(columns for _, columns in groups), *change.shape)
    U, S, Vh = truncated_svd(change, total)
    found, start = [], 0
    for bits, columns in groups:
        end = min(start + columns, total)
        if end > start:
            found.append(_rounded(bits, U[:, start:end], S[start:end], Vh[start:end], moment))
        start = end
    return found


def read_vectors(held: dict[str, Tensor], shape: tuple[int, int], bits: int) -> Vectors:
    """A group back from what a file holds."""
    U, V = (_read(held, name, columns, bits) for name, columns in (("U", len(held["S"])), ("V", shape[1])))
    return Vectors(bits, U, held["S"], V)


def _read(held: dict[str, Tensor], name: str, columns: int, bits: int) -> Rounded | Tensor:
    own = {key.removeprefix(f"{name}."): t for key, t in held.items() if key.startswith(f"{name}.")}
    return own["values"] if bits == WIDE else Rounded.unpacked(own, columns, bits, GROUP)


def _rounded(bits: int, U: Tensor, S: Tensor, Vh: Tensor, moment: Tensor | None) -> Vectors:
    if bits == WIDE:
        return Vectors(bits, U.half(), S.clone(), Vh.half())
    V = _packed(gptq(Vh, moment, bits, GROUP))
    behind = None
    if moment is not None:
        into = S[:, None] * V.dense()
        behind = into @ moment.float() @ into.mT
    return Vectors(bits, _packed(gptq(U, behind, bits, GROUP)), S.clone(), V)


def _packed(found: Rounded) -> Rounded:
    """With scales in float16, unless even the largest is too small for it."""
    half = found.scale.half()
    lost = (half.float() - found.scale).abs().max()
    return replace(found, scale=half) if bool(lost <= HALF * found.scale.max()) else found


def _values(part: Rounded | Tensor) -> Tensor:
    return part.dense() if isinstance(part, Rounded) else part.float()
