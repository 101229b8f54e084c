"""Whether a safetensors file can be what it says, before a library believes the length of its header."""

from __future__ import annotations

from pathlib import Path

from lrft.files.read import open_regular
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
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(PREFIX), "little")
    if size < PREFIX or length > size - PREFIX:
        raise DamagedFile(path, f"is torn: its header would need {length:,} bytes, the file has {size:,}")
    if length > MOST:
        raise DamagedFile(path, f"has a header of {length:,} bytes, where at most {MOST:,} can be meant")
