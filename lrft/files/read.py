"""The one way lrft reads its own files: regular ones, of a size such a file can have, and inside their folder.

A device has no end, a pipe waits for a writer, and a link leads out of the folder that was asked for; none is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from lrft.registry.errors import DamagedFile, MissingFile

RECORD = 64 * 2**20  # bytes that a JSON record or a recipe may have
LINES = 4 * 2**30  # those of a file that grows with the steps of a run
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def open_regular(path: Path, most: int | None = None, within: Path | None = None) -> BufferedReader:
    """Open a file for reading, once it is known to be one.

    Args:
        most: bytes that it may have, compared before any is read.
        within: the folder that no link may lead out of.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no regular file, is too large, leads out of `within`, or cannot be opened.
    """
    try:
        if within is not None and leads_out(path, within):
            raise DamagedFile(path, f"is a link out of {within}, which is not followed", REMEDY_LINK)
        _check_kind(
            path, os.stat(path).st_mode
        )  # before it is opened, which alone may do something to a device
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(path, "is missing") from None
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise DamagedFile(repr(str(path)), "is no name of a file") from None
    try:
        found = os.fstat(file.fileno())
        _check_kind(path, found.st_mode)
        if most is not None and found.st_size > most:
            raise DamagedFile(path, f"has {found.st_size:,} bytes, where at most {most:,} can be meant")
    except DamagedFile:
        file.close()
        raise
    return file


REMEDY_LINK = "put the file itself there"


def read_bytes(path: Path, most: int = RECORD, within: Path | None = None) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        MissingFile, DamagedFile: see `open_regular`.
    """
    with open_regular(path, most, within) as file:
        return content_of(file, path, most)


def content_of(file: BufferedReader, path: Path, most: int) -> bytes:
    """What an open file holds, from its start.

    Raises:
        DamagedFile: it holds more than `most` bytes, or the system cannot read it.
    """
    try:
        file.seek(0)
        size = min(os.fstat(file.fileno()).st_size, most)
        content = file.read(size + 1)  # room is made for all that is asked for
        if len(content) > size:  # it has grown
            content += file.read(most + 1 - len(content))
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror or error})") from None
    if len(content) > most:
        raise DamagedFile(path, f"has more than the {most:,} bytes that can be meant")
    return content


def read_text(path: Path, most: int = RECORD, within: Path | None = None) -> str:
    """The text of a UTF-8 file.

    Raises:
        MissingFile, DamagedFile: see `open_regular`; or a byte is no UTF-8.
    """
    return decoded(read_bytes(path, most, within), path)


def read_lines(path: Path) -> list[str]:
    """The lines of a file that grows with the steps of a run, without their ends.

    Raises:
        MissingFile, DamagedFile: see `read_text`.
    """
    lines = read_text(path, LINES, path.parent).split(
        "\n"
    )  # texts may hold the other ends of lines that there are
    return lines if lines[-1] else lines[:-1]


def decoded(content: bytes, path: Path) -> str:
    """The text that bytes are.

    Raises:
        DamagedFile: they are no UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte 0x{content[error.start]:02x} at place {error.start:,} is no UTF-8 text"
        raise DamagedFile(path, what) from None


def digest_of(file: BufferedReader, path: Path) -> str:
    """sha256 (hex) of an open file, from its start, read piece by piece.

    Raises:
        DamagedFile: the system cannot read it.
    """
    try:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror or error})") from None


def leads_out(path: Path, within: Path) -> bool:
    """Whether a path, links followed, ends outside of a folder."""
    inside, real = os.path.realpath(within), os.path.realpath(path)
    return real != inside and not real.startswith(inside.rstrip(os.sep) + os.sep)


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((word for is_it, word in KINDS.items() if is_it(mode)), "no regular file")
        raise DamagedFile(path, f"is {kind}, not a file")
