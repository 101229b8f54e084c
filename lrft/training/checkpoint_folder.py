"""A checkpoint as a folder of plain files, written whole or not at all, and verified before anything is believed."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrft.core.swap import replace_folder, sync
from lrft.files.sums import MANIFEST, manifest_bytes, plain_sum, sum_of
from lrft.registry.errors import DamagedFile, LrftError
from lrft.registry.json import Json
from lrft.training.opened import STEP, OpenCheckpoint


def write_folder(final: Path, files: dict[str, bytes], manifest: Mapping[str, Json]) -> None:
    """Write files beside, sync, manifest last, rename; a damaged folder at `final` is kept aside, a whole one replaced.

    Raises:
        LrftError: not enough room, or not writable.
    """
    needed = sum(len(content) for content in files.values())
    scratch = final.with_name(f"{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(final.parent).free) < needed:
            raise OSError(errno.ENOSPC, f"{free} bytes free")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        entries: dict[str, Json] = {}
        for name, content in files.items():
            _write_synced(scratch / name, content)
            entries[name] = plain_sum(sum_of(content))
        _write_synced(scratch / MANIFEST, manifest_bytes({**manifest, "files": entries}))
        sync(scratch)
        if final.exists() and not fault(final):
            replace_folder(scratch, final)
            return
        if final.exists():
            final.rename(final.with_name(f"{final.name}.damaged-{time.time_ns()}"))
        scratch.rename(final)
        sync(final.parent)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise LrftError(
            f"{final}: could not be written ({error.strerror or error}); it needs {needed} bytes. "
            "Earlier checkpoints are intact; free some space and add --resume."
        ) from error


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint folder, or an empty string when its manifest verifies."""
    try:
        with OpenCheckpoint(folder) as checkpoint:
            return checkpoint.fault()
    except DamagedFile as error:
        return f"{Path(error.file).name} {error.problem}"


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that verifies. Damaged ones are named, kept and skipped."""
    found = open_newest(folder, say)
    if found is None:
        return None
    found.close()
    return found.path


def open_newest(folder: Path, say: Callable[[str], None] = print) -> OpenCheckpoint | None:
    """The same with its files open, so that a training beside cannot prune them away."""
    seen: set[Path] = set()
    while remaining := [path for path in steps_in(folder) if path not in seen]:
        candidate = max(remaining, key=step_of)
        seen.add(candidate)
        try:
            checkpoint = OpenCheckpoint(candidate)
        except DamagedFile as error:
            if not candidate.exists():  # pruned while we looked: the one that it gave way to is newer
                continue
            problem = f"{Path(error.file).name} {error.problem}"
        else:
            if not (problem := checkpoint.fault()):
                return checkpoint
            checkpoint.close()
        say(f"{candidate.name}: {problem}; trying the one before")
    return None


def kept(folder: Path, what: str) -> tuple[str, Any] | None:
    """Name of the newest whole checkpoint and what its manifest keeps of the run; None where there is no such."""
    found = open_newest(folder, lambda line: None)
    if found is None:
        return None
    found.close()
    value = found.manifest.get(what)
    return None if value is None else (found.path.name, value)


def steps_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.glob("step-*") if path.is_dir() and STEP.fullmatch(path.name)]


def remains(folder: Path) -> list[str]:
    """Names of everything that is a checkpoint or was one: damaged, kept aside or renamed; none of a cut-off save."""
    if not os.path.lexists(folder):
        return []
    if not folder.is_dir() or folder.is_symlink():
        return [folder.name]
    return sorted(path.name for path in folder.glob("step-*") if path.suffix != ".tmp")


def step_of(folder: Path) -> int:
    """N of `step-N`."""
    return int(folder.name.removeprefix("step-"))


def prune(folder: Path, keep_last: int, best: str | None) -> None:
    """Delete old checkpoints, once the newest verifies: all but the `keep_last` newest and the best one."""
    present = sorted(steps_in(folder), key=step_of)
    if not present or fault(present[-1]):
        return
    for old in present[:-keep_last]:
        if old.name != best:
            shutil.rmtree(old, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
