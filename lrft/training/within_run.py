"""A folder inside of a run that stands for it: its finished, best or last adapter, or one of its checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lrft.files.json import read_object
from lrft.registry.errors import DamagedFile, UsageError
from lrft.training.run_manifest import RUN

ADAPTER, BEST, LAST = "adapter", "best", "last"
CHECKPOINTS = "checkpoints"
STANDS_FOR = "checkpoint.json"  # in `best/` and `last/`: which checkpoint it is


@dataclass(frozen=True)
class Within:
    """The run, and the checkpoint that is meant; None where the newest one is."""

    run: Path
    checkpoint: Path | None


def within_run(folder: Path) -> Within | None:
    """What a folder inside of a run stands for; None of any other folder.

    Raises:
        UsageError: nothing says which checkpoint it is of, or that is not there.
    """
    # os.path answers where pathlib raises: a name that no file can have is no folder.
    if folder.parent.name == CHECKPOINTS:
        return Within(folder.parent.parent, folder) if os.path.isfile(folder / "manifest.json") else None
    if folder.name not in (ADAPTER, BEST, LAST) or not os.path.isfile(folder.parent / RUN):
        return None
    if not os.path.isdir(folder):
        return None
    return Within(folder.parent, None if folder.name == ADAPTER else _checkpoint_of(folder))


def _checkpoint_of(folder: Path) -> Path:
    other = f"name {folder.parent}, or one of its {CHECKPOINTS}"
    try:
        step = read_object(folder / STANDS_FOR, within=folder).get("step")
    except DamagedFile as error:
        raise UsageError(f"{folder}: nothing says which checkpoint it is of ({error}); {other}") from error
    if not isinstance(step, int) or isinstance(step, bool):  # a text could lead out of the run
        raise UsageError(f"{folder}: its {STANDS_FOR} has no number of a step; {other}")
    found = folder.parent / CHECKPOINTS / f"step-{step}"
    if not os.path.isfile(found / "manifest.json"):
        raise UsageError(f"{folder}: is of {found.name}, which is not there any more; {other}")
    return found
