"""The lines of a text file, compressed or not, and what to say of one that is broken."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lrft.core import stop
from lrft.data.example import Row
from lrft.data.rows import Indexed
from lrft.registry.errors import DataError

Read = tuple[Indexed[Row], Sequence[int] | None]  # rows, and the line each begins on, where each has its own
Parse = Callable[[Path, int, str], Row]  # a line, its file and number, to a row

BOM = b"\xef\xbb\xbf"
ZSTD = ".zst"
BLANK = 1_000_000  # lines in a row
TOO_BLANK = f"more than {BLANK:,} blank lines in a row; remove them"
# A file that unpacks to more than this, and to more than so many times its own size, is no text that somebody wrote.
UNPACKED, TIMES = 64 * 2**20, 200
CHUNK = 2**18  # bytes
# Bytes of a line that is a row, and of a file that is read in one piece: no memory is asked for what nobody wrote.
LONGEST, WHOLE = 64 * 2**20, 4 * 2**30


def lines_of(path: Path, longest: int = LONGEST) -> Iterator[str]:
    """Decoded lines with their ends; only a line feed ends one.

    Args:
        longest: bytes that a line may have; of a file that is one row or one list, `WHOLE`, which is then all it has.

    Raises:
        DataError: names the line that is broken.
    """
    number, blank = 0, 0
    if longest == WHOLE:
        _check_size(path)
    try:
        with _open(path) as file:
            for number, line in enumerate(_cut(file, path, longest), 1):
                stop.poll()
                blank = 0 if line.strip() else blank + 1
                if blank > BLANK:
                    fail(path, number, TOO_BLANK)
                yield _decoded(path, number, line.removeprefix(BOM) if number == 1 else line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(path, number + 1, f"the gzip data is damaged ({error})")
    except OSError as error:
        if path.suffix != ZSTD or error.errno is not None:
            raise
        fail(path, number + 1, f"the zstd data is damaged ({error})")


def look(path: Path, whole: bool) -> None:
    """Refuse a file that is none of its kind, before anything goes through all of it.

    Args:
        whole: it is read in one piece.

    Raises:
        DataError: it is larger than such a file can be, or its first line is no row.
    """
    if whole:
        _check_size(path)
    else:
        next(lines_of(path), None)


class IndexedLines:
    """Rows of a large file that has one a line; a row is read, and parsed, when it is asked for.

    What is held of the file is where each line begins: 16 bytes a row.

    Args:
        limit: only so many rows.
    """

    def __init__(self, path: Path, parse: Parse, limit: int | None = None) -> None:
        self.path = path
        self.parse = parse
        self.starts = array("Q")
        self.lines = array("Q")
        start, blank = 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(_cut(file, path, LONGEST), 1):
                if len(self.lines) == limit:
                    break
                stop.poll()
                blank = 0 if line.strip() else blank + 1
                if blank > BLANK:
                    fail(path, number, TOO_BLANK)
                if not blank:
                    self.starts.append(start + len(BOM) * (number == 1 and line.startswith(BOM)))
                    self.lines.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            return self._read(file, index)

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                yield self._read(file, index)

    def _read(self, file: BinaryIO, index: int) -> Row:
        file.seek(self.starts[index])
        number = self.lines[index]
        return self.parse(self.path, number, _decoded(self.path, number, file.readline()))


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > WHOLE:
        raise DataError(
            f"{path}: has {size:,} bytes, and at most {WHOLE:,} are read in one piece; write a row a line (.jsonl)"
        )


def _cut(file: BinaryIO | io.BufferedReader, path: Path, longest: int) -> Iterator[bytes]:
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            fail(path, number, f"the line has more than {longest:,} bytes; a row ends with its line")
        yield line


def fail(path: Path, line: int, what: str) -> NoReturn:
    """Stop, and say of which line it is."""
    raise DataError(f"{path}:{line}: {what}")


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"
        wide = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        fail(path, number, f"{byte}{', but UTF-16' if wide else ''}; save the file as UTF-8")


def _open(path: Path) -> BinaryIO | io.BufferedReader:
    if path.suffix == ".gz":
        return io.BufferedReader(_Bounded(gzip.open(path), path), CHUNK)
    if path.suffix == ZSTD:
        from pyarrow import CompressedInputStream, OSFile  # comes with datasets

        return io.BufferedReader(_Bounded(CompressedInputStream(OSFile(str(path)), "zstd"), path), CHUNK)
    return path.open("rb")


class _Bounded(io.RawIOBase):
    """What a compressed file unpacks to, as long as that is in proportion to its size."""

    def __init__(self, unpacked: Any, path: Path) -> None:
        self.unpacked, self.path = unpacked, path
        self.left = max(UNPACKED, TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.unpacked.read1(min(len(buffer), CHUNK))  # what is there before a fault, too
        self.left -= len(found)
        if self.left < 0:
            raise DataError(
                f"{self.path}: unpacks to more than {TIMES} times its size; if that is meant, unpack it and name what "
                "comes out"
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self.unpacked.close()
        super().close()
