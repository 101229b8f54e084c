"""What could not be written, as one sentence: the file, the system's reason, the bytes, and what would help."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrft.registry.errors import LrftError

# A failing disk is no full one, and a full one is no forbidden one: each has its own way out.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota on this disk",
    errno.EROFS: "mount the disk for writing",
    errno.EIO: "the disk may be failing, so look at the system's log",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
}
OTHERWISE = "give another place"
ABOUT_ROOM = (errno.ENOSPC, errno.EDQUOT)
# How libraries that write outside of Python say an errno: safetensors and tokenizers (Rust), and torch (C++).
SAID = re.compile(r"\(os error (\d+)\)|^unable to .*\((\d+)\)$")


class WriteError(LrftError):
    """A file could not be written; what was there before is intact, and nothing half-written is beside it.

    Attributes:
        number: the system's errno.
    """

    def __init__(self, message: str, number: int) -> None:
        self.number = number
        super().__init__(message)


@contextmanager
def tell_failures(
    path: Path, name: str = "", needed: int = 0, then: str = "", within: Path | None = None
) -> Iterator[None]:
    """Make one sentence of an error of the system, or of a library's writer, that comes up inside.

    Args:
        path: what is being written.
        name: how the user knows it, such as `--out model`; by default its path.
        needed: bytes, where they are known.
        then: what to do after the remedy, such as `, then add --resume`.
        within: the folder that is being filled; errors about files elsewhere are none of writing, and pass.

    Raises:
        WriteError: instead of the error.
    """
    try:
        yield
    except LrftError:
        raise
    except Exception as error:
        number = number_of(error)
        file = _file_of(error)
        if number is None or (within is not None and file is not None and not file.is_relative_to(within)):
            raise
        said = name or str(path)
        if within is not None and file is not None and file != within:
            said = f"{said}: {file.relative_to(within)}"
        raise failure(said, number, path, needed, then) from error


def failure(name: str, number: int, path: Path, needed: int = 0, then: str = "") -> WriteError:
    """The error for a file that could not be written, with the bytes where they are the reason."""
    facts = os.strerror(number)
    if number in ABOUT_ROOM:
        facts += f"; {needed:,} bytes are needed, {free(path):,} are free" if needed else ""
        facts += f"; {free(path):,} bytes are free" if not needed else ""
    return WriteError(
        f"{name}: could not be written ({facts}); {REMEDIES.get(number, OTHERWISE)}{then}", number
    )


def check_room(path: Path, needed: int, name: str = "", then: str = "") -> None:
    """Refuse what will not fit, before anything is written.

    Args:
        path: where; it need not be there yet.
        needed: bytes.

    Raises:
        WriteError: fewer are free.
    """
    if free(path) < needed:
        raise failure(name or str(path), errno.ENOSPC, path, needed, then)


def free(path: Path) -> int:
    """Bytes that can be written at a path, which need not be there yet."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free


def number_of(error: BaseException) -> int | None:
    """The errno that an error is about; None where it is not the system's."""
    if isinstance(error, ConnectionError):  # a closed pipe or a lost hub is no disk
        return None
    if isinstance(error, OSError):
        return error.errno
    found = SAID.search(str(error))
    return None if found is None else int(found[1] or found[2])


def _file_of(error: BaseException) -> Path | None:
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes | os.PathLike) else None
