"""Safetensors files whose tensors are written one by one, each in its place: the bytes that the library itself writes.

It writes a file in one call, of tensors that are all in memory. Its header depends on names, dtypes and shapes alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lrft.files.tensors import PREFIX
from lrft.files.write import write_all

ALIGNMENT = 8  # bytes, of the header
# Names of dtypes in headers, in the order of the library, and bytes of a number.
BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: `size` bytes from `offset` on."""

    file: Path
    offset: int
    size: int

    def write(self, data: bytes | memoryview) -> None:
        """Fill it.

        Raises:
            OSError: the disk is full or not writable.
        """
        assert len(data) == self.size, f"{self.size} bytes were laid out, not {len(data)}"
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.lseek(descriptor, self.offset, os.SEEK_SET)
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def lay_out(
    file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, Place]:
    """Write a file of a folder that is not finished, with its header and room for every tensor; name -> its place.

    Args:
        tensors: name -> dtype, as `BYTES` has it, and shape.

    Raises:
        OSError: the disk is full or not writable.
    """
    order = list(BYTES)
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name][0]), name.encode()))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    spans, end = dict[str, tuple[int, int]](), 0
    for name in names:
        dtype, shape = tensors[name]
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        spans[name] = start, end
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    before = PREFIX + len(header)
    descriptor = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        write_all(descriptor, len(header).to_bytes(PREFIX, "little") + header)
        os.ftruncate(descriptor, before + end)
    finally:
        os.close(descriptor)
    return {name: Place(file, before + start, stop - start) for name, (start, stop) in spans.items()}


class Gathered:
    """Tensors of a file that come one by one, before it is known which do: kept in a file beside it until all have.

    Args:
        file: of a folder that is not finished.

    Attributes:
        tensors: name -> dtype, as `BYTES` has it, and shape.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.beside = file, file.with_name(f"{file.name}.parts")
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._starts: dict[str, int] = {}
        self._end = 0

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        """Keep one.

        Raises:
            OSError: the disk is full or not writable.
        """
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.beside, flags, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
        self.tensors[name], self._starts[name] = (dtype, shape), self._end
        self._end += len(data)

    def write(self, others: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Place]:
        """Write the file, one tensor in memory at a time; the places of `others`, which are still to be filled.

        Args:
            others: names that were not added -> dtype and shape.

        Raises:
            OSError: the disk is full or not writable.
        """
        places = lay_out(self.file, {**self.tensors, **others}, {})
        if self.tensors:
            with self.beside.open("rb") as parts:
                for name, start in self._starts.items():
                    place = places.pop(name)
                    parts.seek(start)
                    place.write(parts.read(place.size))
            os.unlink(self.beside)
        return places
