"""What a folder holds alike each time that it is written: made once, and given a second name after that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lrft.files.fresh_folder import Fresh


class Unchanging:
    """Knows the files of a folder as this process wrote it last, as long as nobody touched them since.

    A save then costs one link for each file that says the same, and neither a write nor an fsync.
    """

    def __init__(self) -> None:
        self._filled: set[str] = set()  # files that `fill` made
        self._sums: dict[str, bytes] = {}  # file that `write` made -> sha256 of what it holds
        self._stats: dict[Path, tuple[int, ...]] = {}  # finished file -> how the system knows it

    def fill(self, fresh: Fresh, make: Callable[[Path], object]) -> None:
        """Let `make` write its files, or link those that it wrote before; it has to write the same each time."""
        before = [path for path in self._stats if path.name in self._filled]
        if before and len(before) == len(self._filled) and all(map(self._is_untouched, before)):
            for path in before:
                fresh.link(path)
            return
        there = set(os.listdir(fresh.path))
        make(fresh.path)
        self._filled = set(os.listdir(fresh.path)) - there

    def write(self, fresh: Fresh, name: str, content: bytes) -> None:
        """Write a file, or link the one that says the same."""
        sum_ = hashlib.sha256(content).digest()
        before = next((path for path in self._stats if path.name == name), None)
        if before is not None and self._sums.get(name) == sum_ and self._is_untouched(before):
            fresh.link(before)
            return
        fresh.write(name, content)
        self._sums[name] = sum_

    def keep(self, folder: Path) -> None:
        """The folder is finished, and has its name."""
        names = self._filled | self._sums.keys()
        self._stats = {path: _stat(path) for name in names if (path := folder / name).is_file()}

    def _is_untouched(self, path: Path) -> bool:
        try:
            return not path.is_symlink() and _stat(path) == self._stats[path]
        except OSError:
            return False


def _stat(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
