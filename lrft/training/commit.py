"""The git commit of a working directory, read from the repository's files.

git itself is never asked: it runs what the repository's own configuration says (`core.fsmonitor`, filters, hooks),
and a training may be started in a repository that somebody else packed.
"""

from __future__ import annotations

import re
from pathlib import Path

ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
NAME = re.compile(r"refs/[\w./@+-]+")  # of a branch; what git allows beyond that is not looked up
SHOWN = 12  # hex digits
LONGEST, LONGEST_PACKED = 4096, 16 * 2**20  # bytes read of a pointer, and of packed-refs


def commit_of(folder: Path) -> str | None:
    """The first digits of the commit that is checked out at `folder`; None outside of a repository."""
    for place in (folder, *folder.parents):
        found = _repository(place / ".git")
        if found is not None:
            head = _commit(found)
            return None if head is None else head[:SHOWN]
    return None


def _repository(entry: Path) -> Path | None:
    """The folder that holds HEAD: `.git`, or what a `.git` file of a worktree or a submodule points to."""
    if entry.is_dir():
        return entry if (entry / "HEAD").is_file() else None
    pointer = _read(entry, LONGEST)
    if pointer is None or not pointer.startswith("gitdir:"):
        return None
    found = entry.parent / pointer.removeprefix("gitdir:").strip()
    return found if (found / "HEAD").is_file() else None


def _commit(repository: Path) -> str | None:
    head = (_read(repository / "HEAD", LONGEST) or "").strip()
    if ID.fullmatch(head):
        return head
    name = head.removeprefix("ref:").strip()
    if not NAME.fullmatch(name) or ".." in name:
        return None
    shared = (_read(repository / "commondir", LONGEST) or "").strip()  # where a worktree's branches are
    for folder in (repository, repository / shared):
        loose = (_read(folder / name, LONGEST) or "").strip()
        if ID.fullmatch(loose):
            return loose
        for line in (_read(folder / "packed-refs", LONGEST_PACKED) or "").splitlines():
            commit, _, branch = line.partition(" ")
            if branch == name and ID.fullmatch(commit):
                return commit
    return None


def _read(path: Path, most: int) -> str | None:
    """The text of a regular file that is not too long; None of anything else."""
    try:
        if not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_bytes().decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None
