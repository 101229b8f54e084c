"""Whether a safetensors file can be what it says, before a library believes the length of its header."""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from typing import Any

from lrft.files.json import check, parse_object
from lrft.files.read import open_regular
from lrft.files.records import TensorEntry
from lrft.registry.errors import DamagedFile

MOST = 16 * 2**20  # bytes of a header: a hundred bytes a tensor, and no model has 100,000 of them in a file
PREFIX = 8  # bytes that say how long the header is


def check_tensor_file(path: Path, within: Path | None = None) -> None:
    """Compare the length of the header with the file, and with what a header can need.

    Raises:
        MissingFile: there is no such file.
        DamagedFile: it is no regular file, or its header is longer than the file, or than `MOST`.
    """
    with open_regular(path, within=within) as file:
        _length(file, path)


def read_header(path: Path) -> dict[str, Any]:
    """What the header says of each tensor: `dtype`, `shape`, `data_offsets`.

    Raises:
        MissingFile, DamagedFile: as `check_tensor_file`; or it is no JSON of that form.
    """
    with open_regular(path) as file:
        content = file.read(_length(file, path))
    found = parse_object(content, path)
    found.pop("__metadata__", None)
    check(found, dict[str, TensorEntry], path)
    return found


def _length(file: BufferedReader, path: Path) -> int:
    """Bytes of the header, which the file then stands before."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(PREFIX), "little")
    if size < PREFIX or length > size - PREFIX:
        raise DamagedFile(path, f"is torn: its header would need {length:,} bytes, the file has {size:,}")
    if length < len("{}"):
        raise DamagedFile(path, "has no header, so it holds no tensors")
    if length > MOST:
        raise DamagedFile(path, f"has a header of {length:,} bytes, where at most {MOST:,} can be meant")
    return length
