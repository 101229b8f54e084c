"""Files written whole or not at all, on the disk before their name is, and never through somebody's link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lrft.files.failure import OTHERWISE, WriteError, tell_failures
from lrft.files.scratch import scratch_file, sweep


def write_file(path: Path, content: str | bytes, name: str = "", then: str = "") -> None:
    """Write a file: beside, synced, renamed over what was there, the folder synced. Missing folders are made.

    Args:
        name: how the user knows it, such as `--out report.html`; by default its path.
        then: what to do after the remedy, such as `, then add --resume`.

    Raises:
        WriteError: the disk is full or not writable; what was there before is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    with tell_failures(path, name, len(data), then):
        make_folder(path.parent)
        sweep(path.parent, path)
        with scratch_file(path) as (descriptor, scratch):
            write_all(descriptor, data)
            os.fsync(descriptor)
            os.replace(scratch, path)
        sync(path.parent)


def write_changed(path: Path, content: str | bytes, name: str = "", then: str = "") -> bool:
    """`write_file`, where the file does not say the same already; whether it was written.

    Raises:
        WriteError: as `write_file`.
    """
    data = content.encode() if isinstance(content, str) else content
    with suppress(OSError):
        if not path.is_symlink() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
    write_file(path, data, name, then)
    return True


def write_new_file(path: Path, content: str | bytes, name: str = "") -> None:
    """`write_file`, where nothing is yet; its folder has to be there.

    Raises:
        FileExistsError: something is.
        WriteError: as `write_file`.
    """
    data = content.encode() if isinstance(content, str) else content
    with tell_failures(path, name, len(data)):
        sweep(path.parent, path)
        with scratch_file(path) as (descriptor, scratch):
            write_all(descriptor, data)
            os.fsync(descriptor)
            taken = not _take(scratch, path)
        if not taken:
            try:
                sync(path.parent)
            except OSError:  # nobody can tell whether it stays, and it would be refused next time
                os.unlink(path)
                raise
    if taken:
        raise FileExistsError(path)


@contextmanager
def fresh_file(path: Path, name: str = "", needed: int = 0, then: str = "") -> Iterator[Path]:
    """A name that a library writes to, which takes the place of `path` once all of it is on the disk.

    Raises:
        WriteError: it cannot be written, or the library wrote nothing; what was there before is intact.
    """
    with ExitStack() as stack:
        with tell_failures(path, name, needed, then):
            make_folder(path.parent)
            sweep(path.parent, path)
            _, scratch = stack.enter_context(scratch_file(path))
        with tell_failures(path, name, needed, then, within=scratch.absolute()):
            yield scratch
        with tell_failures(path, name, needed, then):
            if not scratch.stat().st_size:  # torch's recorder tells nobody that it could not write
                why = "nothing arrived on the disk"
                raise WriteError(f"{name or path}: could not be written ({why}); {OTHERWISE}{then}", 0)
            sync(scratch)
            os.replace(scratch, path)
            sync(path.parent)


def write_in(path: Path, content: str | bytes) -> None:
    """Write a file of a folder that is itself not finished and will be synced as a whole.

    One of that name that is there gives way, and is not written into: it may have another name elsewhere.

    Raises:
        OSError: the disk is full or not writable.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        write_all(descriptor, content.encode() if isinstance(content, str) else content)
    finally:
        os.close(descriptor)


def holds_other(path: Path, content: str) -> bool:
    """Whether something is there that is not this file; what is there is never waited for, nor read without end."""
    data = content.encode()
    if not os.path.lexists(path):
        return False
    return not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data


def remove_file(path: Path, name: str = "", then: str = "") -> None:
    """Remove a file, if it is there.

    Raises:
        WriteError: it cannot be removed.
    """
    with tell_failures(path, name, then=then), suppress(FileNotFoundError):
        os.unlink(path)
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each on the disk before the next.

    Raises:
        OSError: the disk is full or not writable.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):
        os.mkdir(path)
        sync(path.parent)
        return
    if not path.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(path))


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """A full disk takes a part and says so only at the next call."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _take(scratch: Path, path: Path) -> bool:
    """Give a finished file its name, unless that is taken."""
    try:
        os.link(scratch, path, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:  # no second names here; whoever takes the name between these two calls is written over
        if os.path.lexists(path):
            return False
        os.replace(scratch, path)
    return True
