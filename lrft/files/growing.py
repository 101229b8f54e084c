"""Files that one process at a time holds: a run's lock, and a file that grows by whole lines."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lrft.files.failure import OTHERWISE, WriteError, tell_failures
from lrft.files.write import make_folder, sync, write_all


class Lock:
    """An empty file that says, by a lock on it, that a process is at work in its folder; gone with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Make the file and hold it; False where another process does.

        Raises:
            OSError: the file cannot be made, or is a link.
        """
        make_folder(self.path.parent)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    @property
    def is_held(self) -> bool:
        """Whether it is ours."""
        return self._descriptor is not None

    def give_back(self) -> None:
        """Let others have it; the end of the process does the same."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def is_taken(self) -> bool:
        """Whether a process holds it now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody was at work here yet
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # the file system knows no locks
            return False
        finally:
            os.close(descriptor)
        return False


class GrowingFile:
    """A file that is added to for long, by one process, which comes back from each call when all is on the disk.

    Args:
        name: how the user knows it, such as `--out answers.jsonl`.
        then: what to do after the remedy of a failure.

    Attributes:
        size: bytes in it.
    """

    def __init__(self, path: Path, name: str = "", then: str = "") -> None:
        self.path, self.name, self.then = path, name, then
        self._descriptor: int | None = None
        self.size = 0

    def open(self) -> bool:
        """Make the file where there is none, and hold it; False where another process does.

        Raises:
            WriteError: it cannot be written, or is a link.
        """
        with tell_failures(self.path, self.name, then=self.then):
            make_folder(self.path.parent)
            if os.path.lexists(self.path) and not self.path.is_file() and not self.path.is_symlink():
                raise WriteError(f"{self.name or self.path}: is no file; {OTHERWISE}{self.then}", errno.ENXIO)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        return True

    def cut(self, size: int) -> None:
        """Keep the first so many bytes.

        Raises:
            WriteError: the disk fails.
        """
        with tell_failures(self.path, self.name, then=self.then):
            os.ftruncate(self._held, size)
            self.size = size

    def append(self, text: str) -> None:
        """Add a text, all of it or none.

        Raises:
            WriteError: the disk is full or gone; what was there before stays.
        """
        data = text.encode()
        with tell_failures(self.path, self.name, len(data), self.then):
            try:
                write_all(self._held, data)
                os.fsync(self._held)
                if not self.size:
                    sync(self.path.parent)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._held, self.size)
                raise
            self.size += len(data)

    def close(self) -> None:
        """Let others write."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _held(self) -> int:
        assert self._descriptor is not None, "open it first"
        return self._descriptor
