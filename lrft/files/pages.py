"""Room on a disk that is read and written as memory: pages come when they are touched and go when they are told."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from lrft.files.failure import check_room, tell_failures
from lrft.files.scratch import scratch_file, sweep
from lrft.files.write import make_folder

STEM = "offload"
THEN = ", or give another offload.folder; nothing was trained"


class Pages:
    """Some whole pages of a file, mapped.

    Attributes:
        memory: their bytes, which are those of the file.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, offset=offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = size

    def call(self) -> None:
        """Ask the system to begin reading them; comes back at once."""
        self._advise(mmap.MADV_WILLNEED)

    def drop(self) -> None:
        """Let them go from memory; what was written to them is the file's, and is read again at the next touch."""
        self._advise(mmap.MADV_DONTNEED)

    def _advise(self, what: int) -> None:
        # Python's own `madvise` would keep every other thread waiting while the disk is asked.
        _madvise(ctypes.c_void_p(self._address), ctypes.c_size_t(self.size), ctypes.c_int(what))


class PageFile:
    """A file that has no name once it is open, so that however the process ends the system takes it away.

    Args:
        folder: where; made where it is not there.
        needed: bytes that are going to be asked for. They are taken from the disk at once, or refused.

    Attributes:
        size: bytes given out.

    Raises:
        WriteError: the disk has no room for so many, or is not writable.
    """

    def __init__(self, folder: Path, needed: int = 0) -> None:
        final = folder / STEM
        self.folder, self.size = folder, 0
        self._name = f"{folder}: the file of offload"
        self._stack = ExitStack()
        check_room(folder, needed, self._name, THEN)
        try:
            with tell_failures(folder, self._name, needed, THEN):
                make_folder(folder)
                sweep(folder, final)  # one whose process was killed before it was without a name
                self._descriptor, path = self._stack.enter_context(scratch_file(final))
                path.unlink()
                self._take(0, needed)
        except BaseException:
            self._stack.close()
            raise

    def claim(self, size: int) -> Pages:
        """So many bytes of room, a whole number of pages.

        Raises:
            WriteError: the disk is full.
        """
        whole = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        with tell_failures(self.folder, self._name, whole, THEN):
            # Where the disk has the room before a page is touched, no touch can meet a full disk, which is a SIGBUS.
            self._take(self.size, whole)
            pages = Pages(self._descriptor, self.size, whole)
        self.size += whole
        return pages

    def close(self) -> None:
        """Let the file go; the disk has its room back once nobody holds pages of it."""
        self._stack.close()

    def _take(self, offset: int, size: int) -> None:
        if size:
            os.posix_fallocate(self._descriptor, offset, size)


_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else lambda *_: 0
