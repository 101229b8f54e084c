"""A folder put in the place of another, so that whoever looks meanwhile finds the old one or the new one, whole."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

HERE = -100  # AT_FDCWD: paths are meant from the current folder
EXCHANGE = 2  # RENAME_EXCHANGE, and RENAME_SWAP of macOS


def replace_folder(new: Path, final: Path) -> None:
    """Put the folder `new` at `final`, in one step where the system can exchange two names; what was there goes.

    Everything in it is on the disk before its name is, so a power cut leaves a whole folder too. Elsewhere there are
    two renames, and `recover_folder` puts back what a kill between them has left aside.

    Raises:
        OSError: the disk is full or not writable.
    """
    for path in sorted(new.rglob("*")):
        if path.is_file():
            sync(path)
    sync(new)
    if not final.exists():
        new.rename(final)
    elif not _exchange(new, final):
        aside = _aside(final)
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        new.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    sync(final.parent)
    shutil.rmtree(new, ignore_errors=True)  # after an exchange, what was there


def recover_folder(final: Path) -> None:
    """Put back a folder that `replace_folder` was about to replace when it was killed."""
    if not final.exists() and (aside := _aside(final)).exists():
        aside.rename(final)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths trade their names; False where the system, or the file system, has no such call."""
    call = _system_call()
    return call is not None and call(os.fsencode(a), os.fsencode(b)) == 0


@cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda a, b: int(swap(a, b, EXCHANGE))
        exchange = library.renameat2
    except (OSError, AttributeError):
        return None
    return lambda a, b: int(exchange(HERE, a, HERE, b, EXCHANGE))
