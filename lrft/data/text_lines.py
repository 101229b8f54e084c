"""The lines of a text file, compressed or not, and what to say of one that is broken."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from lrft.data.example import Row
from lrft.registry.errors import DataError

Read = tuple[list[Row], list[int]]  # rows, and the line each begins on


def lines_of(path: Path) -> Iterator[str]:
    """Decoded lines with their ends; only a line feed ends one."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield line.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(path, number, f"not UTF-8 (byte 0x{error.object[error.start]:02x} at column {error.start + 1})")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(path, number + 1, f"the gzip data is damaged ({error})")


def fail(path: Path, line: int, what: str) -> NoReturn:
    """Stop, and say of which line it is."""
    raise DataError(f"{path}:{line}: {what}")


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
