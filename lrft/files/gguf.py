"""Whether a GGUF file can be what it says, before a library believes its counts, its lengths and its offsets.

Layout: magic, version, two counts; then so many keys with a value each; then so many tensors, of which each says its
dimensions, its type and where its data begins, one after the other from the first aligned place behind all of them.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, with the limits that llama.cpp holds a file to.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from lrft.files.read import open_regular
from lrft.registry.errors import DamagedFile

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the other values
UINT32 = 4
LONGEST_NAME = 2**16
DIMENSIONS = 4
ALIGNMENT = "general.alignment"
LEAST_ENTRY = {"key": 13, "tensor": 24}  # bytes that one takes at least


def check_gguf_file(path: Path, sizes: Mapping[int, tuple[int, int]]) -> None:
    """Follow all that a file says of itself, without reading the data of a tensor.

    Args:
        sizes: type of a tensor -> numbers of a block, and bytes that it takes.

    Raises:
        MissingFile: there is no such file.
        DamagedFile: it is no regular file, no GGUF file, or says what cannot be.
    """
    with open_regular(path) as file:
        head = _Head(file, path)
        if head.take(4) != MAGIC:
            raise DamagedFile(path, "is no GGUF file", "give one that begins with GGUF")
        if (version := head.number("<I")) not in VERSIONS:
            raise head.wrong(f"is of GGUF version {version:,}, and {VERSIONS[0]} and {VERSIONS[-1]} are read")
        tensors, keys = head.count("tensor"), head.count("key")
        alignment = _keys(head, keys)
        ends = list(_tensors(head, tensors, alignment, sizes))
        begin = _aligned(head.place, alignment)
        if ends and begin + ends[-1] > head.size:
            raise head.wrong(
                f"is torn: its tensors end at byte {begin + ends[-1]:,}, and it has {head.size:,}"
            )


class _Head:
    """The part of a file before the tensors' data, read from one end to the other."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._file, self._path, self.place = file, path, 0

    @property
    def left(self) -> int:
        """Bytes behind the place."""
        return self.size - self.place

    def wrong(self, what: str) -> DamagedFile:
        """The error that says so of the file."""
        return DamagedFile(self._path, what, "get the file again")

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DamagedFile: the file ends before.
        """
        found = self._file.read(count) if count <= self.left else b""
        if len(found) < count:
            raise self.wrong(
                f"is torn: {count:,} bytes are meant at byte {self.place:,}, and it has {self.size:,}"
            )
        self.place += count
        return found

    def skip(self, count: int) -> None:
        """Go on behind bytes that nobody needs.

        Raises:
            DamagedFile: the file ends before.
        """
        if count > self.left:
            self.take(count)
        self._file.seek(count, os.SEEK_CUR)
        self.place += count

    def number(self, form: str) -> int:
        """The next number.

        Raises:
            DamagedFile: the file ends before.
        """
        (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(found)

    def count(self, what: str) -> int:
        """How many entries follow.

        Raises:
            DamagedFile: more than the file has room for.
        """
        found = self.number("<Q")
        if found * LEAST_ENTRY[what] > self.left:
            raise self.wrong(f"would have {found:,} {what}s, more than its {self.size:,} bytes hold")
        return found

    def name(self, what: str) -> str:
        """The next text, which names something.

        Raises:
            DamagedFile: it is none.
        """
        length = self.number("<Q")
        if not 0 < length < LONGEST_NAME:
            raise self.wrong(f"has a name of a {what} of {length:,} bytes at byte {self.place:,}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(
                f"has a name of a {what} that is no UTF-8 text before byte {self.place:,}"
            ) from None


def _keys(head: _Head, count: int) -> int:
    """Go past all keys; the alignment that they say."""
    known, alignment = set[str](), 32
    for _ in range(count):
        key = head.name("key")
        if key in known:
            raise head.wrong(f"has the key {key[:80]!r} twice")
        known.add(key)
        kind = head.number("<I")
        if key == ALIGNMENT:
            alignment = head.number("<I") if kind == UINT32 else 0
            if alignment < 1 or alignment & (alignment - 1):
                raise head.wrong(f"says {ALIGNMENT} {alignment:,}, where a power of two is meant")
            continue
        _value(head, key, kind)
    return alignment


def _value(head: _Head, key: str, kind: int) -> None:
    """Go past a value."""
    if kind == ARRAY:
        inner, count = head.number("<I"), head.number("<Q")
        if inner == STRING:
            for _ in range(count):  # each takes bytes, so a count that is none ends with the file
                head.skip(head.number("<Q"))
            return
        if inner not in WIDTHS:
            raise head.wrong(f"has values of type {inner:,} in {key[:80]!r}, which is none")
        head.skip(count * WIDTHS[inner])
    elif kind == STRING:
        head.skip(head.number("<Q"))
    elif kind in WIDTHS:
        head.skip(WIDTHS[kind])
    else:
        raise head.wrong(f"has a value of type {kind:,} at {key[:80]!r}, which is none")


def _tensors(head: _Head, count: int, alignment: int, sizes: Mapping[int, tuple[int, int]]) -> Iterator[int]:
    """Where the data of each tensor ends, counted from where that of the first begins."""
    known, end = set[str](), 0
    for _ in range(count):
        name = head.name("tensor")
        if name in known:
            raise head.wrong(f"has the tensor {name[:80]!r} twice")
        known.add(name)
        if not 0 < (dimensions := head.number("<I")) <= DIMENSIONS:
            raise head.wrong(
                f"gives {name[:80]!r} {dimensions:,} dimensions, where 1 to {DIMENSIONS} are meant"
            )
        shape = [head.number("<Q") for _ in range(dimensions)]
        kind, offset = head.number("<I"), head.number("<Q")
        if kind not in sizes:
            raise head.wrong(f"gives {name[:80]!r} the type {kind:,}, which is none that is known")
        block, size = sizes[kind]
        if min(shape) < 1 or shape[0] % block:
            raise head.wrong(f"gives {name[:80]!r} the shape {shape}, which its type cannot have")
        if offset != (begin := _aligned(end, alignment)):
            raise head.wrong(f"says that {name[:80]!r} begins at {offset:,}, where {begin:,} is meant")
        end = begin + math.prod(shape) // block * size
        yield end


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
