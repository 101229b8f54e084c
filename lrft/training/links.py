"""Links, pipes and devices in a run folder, which somebody else may have packed: nothing is written through them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lrft.registry.errors import UsageError

FOLDERS = (
    "adapter",
    "checkpoints",
    "eval",
    "inspect",
    "posterior",
    "profile",
)  # that commands write in a run folder
FILES = (".json", ".jsonl", ".yaml", ".tmp", ".old", ".lock")  # what the names of the others end in


def check_links(run: Path) -> None:
    """Refuse a run folder with something of ours in it that is neither a file nor a folder. Trackers' links may stay.

    Raises:
        UsageError: names the first.
    """
    try:
        with os.scandir(run) as entries:
            ours = [one for one in entries if one.name in FOLDERS or one.name.endswith(FILES)]
    except OSError:  # not there, or no folder: told by whoever reads it
        return
    for entry in sorted(ours, key=lambda one: one.name):
        _check(entry.path)
        if entry.name in FOLDERS:
            for folder, folders, files in os.walk(entry.path):
                for name in sorted((*folders, *files)):
                    _check(os.path.join(folder, name))


def _check(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:  # a training beside us has pruned it
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a link" if stat.S_ISLNK(mode) else "a pipe or a device"
        raise UsageError(
            f"{path}: is {kind}, and in a run folder none is followed; put the file or the folder itself there"
        )
