"""Tensors on their way into a GGUF file and out of it: which format each gets, and how exact that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.core import stop
from lrft.export.rounding import check_finite, check_range, rounded
from lrft.registry.errors import LrftError

Q8_0 = "q8_0"
BLOCK = 32  # numbers of a q8_0 block, which share one scale
FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", Q8_0: "Q8_0"}
STEPS = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of a number, to the next one
TINY = 2.0**-24  # the smallest float16, where numbers have no relative precision any more


@dataclass(frozen=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: in the file, and `values`: as the file keeps them, float32.
        dtype: one of `FORMATS`, or with `blocks` what GGUF calls their storage.
        blocks: the bytes (rows, n) of `values`, where they were chosen already.
    """

    name: str
    values: Tensor
    dtype: str
    blocks: Tensor | None = None

    @property
    def format(self) -> str:
        """The precision it gets: vectors stay float32, and rows that are no whole blocks become float16."""
        if self.blocks is not None:
            return self.dtype
        if self.values.ndim < 2:
            return "float32"
        return "float16" if self.dtype == Q8_0 and self.values.shape[-1] % BLOCK else self.dtype


def write_file(gguf: Any, writer: Any, entries: Iterable[Entry], stochastic: bool) -> None:
    """Write the metadata that `writer` has, then the tensors one by one.

    Args:
        stochastic: how numbers reach a lower precision, see `lrft.export.rounding`; q8_0 rounds to nearest.

    Raises:
        NumericalError: a number is not finite, or beyond its precision.
    """
    import numpy as np

    entries = list(entries)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[FORMATS.get(entry.format, entry.format)]
        shape = gguf.quant_shape_to_byte_shape(tuple(entry.values.shape), kind)
        size = int(np.prod(shape))
        writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        stop.poll()
        writer.write_tensor_data(_bytes(gguf, entry, stochastic))
    writer.close()


def read_file(gguf: Any, path: Path) -> dict[str, Tensor]:
    """Name -> numbers, float32, in the shape that torch has."""
    reader = gguf.GGUFReader(path)
    return {
        one.name: torch.tensor(gguf.quants.dequantize(one.data, one.tensor_type).astype("float32"))
        for one in reader.tensors
    }


def check_file(path: Path, entries: Iterable[Entry], found: dict[str, Tensor]) -> int:
    """Compare what was read back with what was meant, tensor by tensor; returns how many there are.

    Raises:
        LrftError: a tensor is missing, or is another than its precision allows.
    """
    entries = list(entries)
    if odd := {entry.name for entry in entries} ^ found.keys():
        raise LrftError(f"{path}: does not hold the tensors that were written: {', '.join(sorted(odd)[:3])}")
    for entry in entries:
        stop.poll()
        values = found[entry.name]
        if values.shape != entry.values.shape or not ((values - entry.values).abs() <= allowed(entry)).all():
            raise LrftError(f"{path}: {entry.name} does not read back as it was written")
    return len(entries)


def allowed(entry: Entry) -> Tensor:
    """The largest error of each number of a tensor, or one for all."""
    if entry.blocks is not None:
        return torch.zeros(())
    if entry.format != Q8_0:
        step = STEPS[entry.format]
        return entry.values.abs() * step + (TINY if step else 0.0)
    blocks: Tensor = entry.values.unflatten(-1, (-1, BLOCK)).abs().amax(-1, keepdim=True)
    # Half a step of the block, and what rounding the scale to float16 moves the largest number by.
    largest: Tensor = blocks * (0.5 / 127 + 2.0**-10) + 127 * TINY
    return largest.expand(*blocks.shape[:-1], BLOCK).flatten(-2)


def _bytes(gguf: Any, entry: Entry, stochastic: bool) -> Any:
    if entry.blocks is not None:
        return entry.blocks.cpu().contiguous().numpy()
    values = entry.values.detach().cpu().float().contiguous()
    if entry.format == Q8_0:
        check_finite(entry.name, values)
        check_range(entry.name, values / 127, (values / 127).half())
        return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    dtype = getattr(torch, entry.format)
    return rounded(entry.name, values, dtype, stochastic).contiguous().view(torch.uint8).numpy()
