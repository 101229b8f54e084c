"""Names for what is not finished: unlike any other, held while somebody writes, and cleared away once nobody does."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 230  # bytes of a name that ours is made from; file systems take 255


def scratch_name(final: Path) -> Path:
    """A name beside `final` that nobody else has."""
    return final.with_name(f".{_stem(final)}.{secrets.token_hex(4)}.tmp")


@contextmanager
def scratch_file(final: Path) -> Iterator[tuple[int, Path]]:
    """A new empty file beside `final`, as a descriptor and a name; whatever has that name at the end goes.

    Raises:
        OSError: the disk is full or not writable.
    """
    descriptor, path = _made(final, folder=False)
    try:
        yield descriptor, path
    finally:
        os.close(descriptor)
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """A new empty folder beside `final`; whatever has its name at the end goes.

    Raises:
        OSError: the disk is full or not writable.
    """
    descriptor, path = _made(final, folder=True)
    try:
        yield path
    finally:
        os.close(descriptor)
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path, final: Path | None = None) -> None:
    """Remove what killed processes left in a folder, for one name or for all; what is being written stays."""
    stem = r".+" if final is None else re.escape(_stem(final))
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{8}}\.tmp", re.DOTALL)
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if pattern.fullmatch(entry.name):
                _remove_abandoned(Path(entry.path))


def _made(final: Path, folder: bool) -> tuple[int, Path]:
    """Made and held. A sweep may come between the two, and then another one is made."""
    while True:
        path = scratch_name(final)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        if folder:
            os.mkdir(path)
            try:
                descriptor = os.open(path, flags | os.O_RDONLY)
            except BaseException:
                os.rmdir(path)
                raise
        else:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if not _is_being_swept(descriptor) and path.exists():
            return descriptor, path
        os.close(descriptor)


def _is_being_swept(descriptor: int) -> bool:
    """Hold what was just made; True where a sweep, which took it for abandoned, has it and is about to remove it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks, so no sweep removes anything
        return False
    return False


def _hold(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody's, or the file system knows no locks and nobody can tell
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not _hold(descriptor):
                return
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def _stem(final: Path) -> str:
    return os.fsencode(final.name)[:LONGEST].decode(errors="ignore")
