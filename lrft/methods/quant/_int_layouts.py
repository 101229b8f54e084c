"""How GPTQ and AWQ lay integers out in words of 32 bits, and what their configurations say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrft.registry.errors import UsageError
from lrft.registry.json import Json

WORD = 32  # bits
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # place in a word of AWQ -> which of its eight columns stands there
AWQ_BITS = 4
BITS = (2, 4, 8)  # of integers that do not run across words


class Integers(NamedTuple):
    """A weight scale * (codes - zero).

    Attributes:
        codes: (out, in) uint8.
        zero: (out, groups) uint8, and `scale`: (out, groups).
        group: (in,) which group an input is of, where that does not follow from the order; else None.
    """

    codes: Tensor
    zero: Tensor
    scale: Tensor
    group: Tensor | None

    @staticmethod
    def shape_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(out, in) of a layer, from the shapes of its tensors."""
        (rows, columns), (_, out), (_, zeros) = (shapes[key] for key in ("qweight", "scales", "qzeros"))
        if columns != out:
            return out, rows
        return out, rows * out // zeros


def settings_said(said: Mapping[str, Any]) -> dict[str, Json] | None:
    """The settings of the storage that a checkpoint's `quantization_config` says; None where it is another.

    Raises:
        UsageError: it is of GPTQ or AWQ, in a layout that is not read.
    """
    method = said.get("quant_method")
    if method not in ("gptq", "awq"):
        return None
    bits, size = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size"))
    form = said.get("checkpoint_format", "gptq") if method == "gptq" else said.get("version", "gemm")
    if str(form).lower() not in ("gptq", "gemm"):
        raise UsageError(f"its layout {form} is not read, but gptq and gemm are")
    if bits not in (BITS if method == "gptq" else (AWQ_BITS,)):
        raise UsageError(f"its {bits} bits are not read, but {', '.join(map(str, BITS))} are")
    if said.get("zero_point") is False:
        raise UsageError("it has no zero points, without which it is not read")
    if not isinstance(size, int):
        raise UsageError("it does not say its group_size")
    return {"bits": bits, "group_size": None if size < 1 else size}


def read_integers(tensors: Mapping[str, Tensor]) -> tuple[Integers, int]:
    """The integers of a layer and their bits, in either layout.

    GPTQ packs words along the inputs and stores zero points less 1; AWQ along the outputs, in an order of its own.

    Raises:
        UsageError: which group an input is of cannot be told.
    """
    qweight, qzeros, scales = (tensors[key] for key in ("qweight", "qzeros", "scales"))
    groups, out = scales.shape
    if qweight.shape[1] != out:
        codes, zeros = (_unordered(_spread(words, AWQ_BITS)) for words in (qweight, qzeros))
        return Integers(codes.mT.contiguous(), zeros.mT.contiguous(), scales.mT.contiguous(), None), AWQ_BITS
    bits = WORD * qzeros.shape[1] // out
    codes = _spread(qweight.mT, bits)
    zeros = (_spread(qzeros, bits) + 1) & (2**bits - 1)
    group = tensors.get("g_idx")
    width = codes.shape[1]
    if group is None and width % groups:
        raise UsageError(f"its {groups} groups do not divide its {width} inputs, and it does not list them")
    if group is not None and torch.equal(group.long(), torch.arange(width) // -(-width // groups)):
        group = None
    return Integers(codes.contiguous(), zeros.mT.contiguous(), scales.mT.contiguous(), group), bits


def gptq_tensors(found: Integers, bits: int) -> dict[str, Tensor]:
    """What a checkpoint of GPTQ holds of a layer: words along the inputs, zero points less 1."""
    width, groups = found.codes.shape[1], found.scale.shape[1]
    group = torch.arange(width) // -(-width // groups) if found.group is None else found.group
    return {
        "qweight": _words(found.codes, bits).mT.contiguous(),
        "qzeros": _words((found.zero.mT.int() - 1) & (2**bits - 1), bits),
        "scales": found.scale.half().mT.contiguous(),
        "g_idx": group.int(),
    }


def _words(numbers: Tensor, bits: int) -> Tensor:
    """(rows, n) integers -> (rows, n * bits / 32) words, the first in the lowest bits."""
    places = torch.arange(0, WORD, bits)
    words = (numbers.long().unflatten(1, (-1, WORD // bits)) << places).sum(-1)
    return torch.where(words >= 2 ** (WORD - 1), words - 2**WORD, words).int()


def _spread(words: Tensor, bits: int) -> Tensor:
    """(rows, n) words -> (rows, n * 32 / bits) uint8, the lowest bits first."""
    places = torch.arange(0, WORD, bits, dtype=torch.int32)
    spread: Tensor = (words[..., None] >> places & (2**bits - 1)).flatten(-2).to(torch.uint8)
    return spread


def _unordered(columns: Tensor) -> Tensor:
    """Columns as AWQ orders them in a word -> in their own order."""
    eight = columns.unflatten(1, (-1, len(AWQ_ORDER)))
    found = torch.empty_like(eight)
    found[..., list(AWQ_ORDER)] = eight
    return found.flatten(1)
