"""Folders filled beside, synced file by file, and then given their name: whole, or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

from lrft.files.failure import check_room, tell_failures
from lrft.files.scratch import scratch_folder, scratch_name, sweep
from lrft.files.write import make_folder, sync, write_in

Existing = Literal["refuse", "replace", "keep"]
HERE = -100  # AT_FDCWD: paths are meant from the current folder
EXCHANGE = 2  # RENAME_EXCHANGE, and RENAME_SWAP of macOS


class Fresh:
    """A folder that is being filled.

    Attributes:
        path: where; libraries write into it as they like.
        synced: names of files that are on the disk already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced: set[str] = set()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a small file, in the place of one that is there."""
        self.synced.discard(name)
        write_in(self.path / name, content)

    def link(self, source: Path) -> None:
        """Give a finished file of another folder its name here too, or copy it where there are no second names.

        Nobody writes into such files, whole folders are replaced; so a second name is as good as a copy.
        """
        try:
            os.link(source, self.path / source.name, follow_symlinks=False)
        except OSError:
            self.write(source.name, source.read_bytes())
            return
        self.synced.add(source.name)


@contextmanager
def fresh_folder(
    final: Path,
    existing: Existing = "refuse",
    name: str = "",
    needed: int = 0,
    then: str = "",
) -> Iterator[Fresh]:
    """A folder beside `final`, which takes that name at the end; nothing is left where the end is not reached.

    Args:
        existing: what becomes of what is there by then: only an empty folder gives way; whatever is there goes; or it
            stays, as another process may have been faster.
        name: how the user knows it, such as `--out model`; by default its path.
        needed: bytes, where they are known, which are looked for first.
        then: what to do after the remedy, such as `, then add --resume`.

    Raises:
        WriteError: the disk is full or not writable; what was there is intact.
    """
    with ExitStack() as stack:
        with tell_failures(final, name, needed, then):
            make_folder(final.parent)
            sweep(final.parent, final)
            check_room(final.parent, needed, name or str(final), then)
            fresh = Fresh(stack.enter_context(scratch_folder(final)))
        with tell_failures(final, name, needed, then, within=fresh.path.absolute()):
            yield fresh
        with tell_failures(final, name, needed, then):
            if existing == "replace":
                replace_folder(fresh.path, final, fresh.synced)
            elif existing == "refuse" or not final.exists():
                _sync_all(fresh.path, fresh.synced)
                if final.exists():
                    final.rmdir()
                os.rename(fresh.path, final)
                try:
                    sync(final.parent)
                except (
                    OSError
                ):  # nobody can tell whether it stays, and what is there would be refused next time
                    shutil.rmtree(final, ignore_errors=True)
                    raise


def replace_folder(new: Path, final: Path, synced: set[str] | None = None) -> None:
    """Put the folder `new` at `final`, in one step where the system can exchange two names; what was there goes.

    Everything in it is on the disk before its name is, so a power cut leaves a whole folder too. Elsewhere there are
    two renames, and `recover_folder` puts back what a kill between them has left aside.

    Args:
        synced: names of files that are on the disk already.

    Raises:
        OSError: the disk is full or not writable.
    """
    _sync_all(new, synced or set())
    if not final.exists():
        os.rename(new, final)
    elif not _exchange(new, final):
        _rename_twice(new, final)
    sync(final.parent)
    shutil.rmtree(new, ignore_errors=True)  # after an exchange, what was there


def recover_folder(final: Path) -> None:
    """Put back a folder that `replace_folder` was about to replace when it was killed."""
    if not final.exists() and (aside := _aside(final)).exists():
        os.rename(aside, final)


def move_folder(path: Path, aside: Path) -> None:
    """Give a folder another name in the same place.

    Raises:
        OSError: the disk is not writable.
    """
    os.rename(path, aside)
    sync(aside.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: its name first, so that a kill leaves no half of it under that name.

    What cannot be removed stays, as it takes room and harms nobody.
    """
    gone = scratch_name(path)
    with suppress(OSError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sync_all(folder: Path, synced: set[str]) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or (path.is_file() and path.relative_to(folder).as_posix() not in synced):
            sync(path)
    sync(folder)


def _rename_twice(new: Path, final: Path) -> None:
    aside = _aside(final)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(final, aside)
    try:
        os.rename(new, final)
    except OSError:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


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
