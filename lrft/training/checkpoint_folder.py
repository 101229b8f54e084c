"""A checkpoint as a folder of plain files, written whole or not at all, and verified before anything is believed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrft.files.failure import tell_failures
from lrft.files.fresh_folder import fresh_folder, move_folder, remove_folder
from lrft.files.scratch import sweep
from lrft.files.sums import MANIFEST, manifest_bytes, plain_sum, sum_of
from lrft.registry.errors import DamagedFile
from lrft.registry.json import Json
from lrft.training.opened import STEP, OpenCheckpoint

THEN = ", then add --resume; earlier checkpoints are intact"


def write_folder(final: Path, files: dict[str, bytes], manifest: Mapping[str, Json]) -> None:
    """Write files beside, sync, manifest last, rename; a damaged folder at `final` is kept aside, a whole one replaced.

    Raises:
        WriteError: not enough room, or not writable.
    """
    entries: dict[str, Json] = {name: plain_sum(sum_of(content)) for name, content in files.items()}
    about = manifest_bytes({**manifest, "files": entries})
    needed = sum(map(len, files.values())) + len(about)
    sweep(final.parent)
    with fresh_folder(final, "replace", needed=needed, then=THEN) as fresh:
        for name, content in files.items():
            fresh.write(name, content)
        fresh.write(MANIFEST, about)
        if final.exists() and fault(final):
            with tell_failures(final, then=THEN):
                move_folder(final, final.with_name(f"{final.name}.damaged-{time.time_ns()}"))


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
            remove_folder(old)
