"""Lines added to a file that is there: all of them or none, and never into what keeps nothing."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from lrft.files.failure import OTHERWISE, WriteError, tell_failures
from lrft.files.write import make_folder, write_all

ADDING = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def append(path: Path, text: str, name: str = "", then: str = "", synced: bool = False) -> None:
    """Add lines to a file, all of them or none, on lines of their own. Its folder has to be there.

    Args:
        synced: come back when they are on the disk.

    Raises:
        WriteError: the disk is full or not writable, or the file is a link; the lines before are intact.
    """
    data = text.encode()
    with tell_failures(path, name, len(data), then):
        descriptor = _open_to_add(path, name)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, b"" if _ends_a_line(path, before) else b"\n")
                write_all(descriptor, data)
                if synced:
                    os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def open_log(path: Path, name: str = "", anew: bool = False) -> IO[bytes]:
    """A file that a process of its own prints to; missing folders are made.

    Raises:
        WriteError: it cannot be opened.
    """
    with tell_failures(path, name):
        make_folder(path.parent)
        descriptor = _open_to_add(path, name, os.O_TRUNC if anew else 0)
        return os.fdopen(descriptor, "ab")


def _open_to_add(path: Path, name: str, more: int = 0) -> int:
    """A descriptor that adds to a file; a pipe would be waited at.

    Raises:
        WriteError: it is a pipe or a device, which keeps nothing.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise WriteError(f"{name or path}: is a pipe or a device; {OTHERWISE}", errno.ENXIO)
    return os.open(path, os.O_WRONLY | ADDING | os.O_NONBLOCK | more, 0o666)


def _ends_a_line(path: Path, size: int) -> bool:
    """Whether a line that is added is none that somebody has begun; of what cannot be read nothing is known."""
    if not size:
        return True
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return True
