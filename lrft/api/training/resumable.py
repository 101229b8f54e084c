"""Which checkpoint a run goes on from; a run that has lost what it was is not begun anew in silence."""

from __future__ import annotations

import os

from lrft.core.notes import say
from lrft.files.json import read_object
from lrft.files.records import RunManifest
from lrft.files.sums import MANIFEST
from lrft.recipe.schema import Recipe
from lrft.registry.errors import CheckpointError, DamagedFile, MissingFile, UsageError
from lrft.training.checkpoint_folder import open_newest, remains
from lrft.training.folder import METRICS, RESULT, RUN, RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.relied import check_relied
from lrft.training.within_run import BEST, LAST

# Names in a run folder; where there is a run, its recipe was there before any of them.
WRITTEN_LATER = ("adapter", LAST, BEST, RESULT, METRICS)


def check_known(folder: RunFolder) -> None:
    """Refuse to begin a run beside checkpoints that nobody knows the recipe of, or over what somebody else wrote.

    Raises:
        CheckpointError: there are such.
        UsageError: the folder holds something else under a name that a run gives.
    """
    if folder.started:
        return
    if remains(folder.checkpoints):
        raise CheckpointError(
            f"{folder.path}: holds checkpoints and no recipe.yaml, so nobody knows what they are of; put recipe.yaml "
            "back, or train in another --out"
        )
    if there := next(
        (name for name in WRITTEN_LATER if os.path.lexists(folder.path / name)), _others(folder)
    ):
        raise UsageError(
            f"--out {folder.path}: holds {there}, which a run would write over, and no run; give another folder"
        )


def _others(folder: RunFolder) -> str:
    """The name of a manifest that is no run's, as a folder of a generator has one; else an empty string.

    That of a run is there before its recipe, so that one which was killed in between begins again.
    """
    path = folder.path / MANIFEST
    try:
        read_object(path, RunManifest, within=folder.path)
    except MissingFile:
        return ""
    except DamagedFile:
        return MANIFEST
    return ""


def checkpoint_to_resume(folder: RunFolder, recipe: Recipe) -> OpenCheckpoint | None:
    """The newest checkpoint that verifies, its files open; None for a run that has saved none yet.

    Raises:
        CheckpointError: there are some and none verifies, they are of another run, or a finished run has none any more.
    """
    saved = open_newest(folder.checkpoints, say)
    if saved is not None:
        check_relied(saved, recipe, folder.read(RUN))
        return saved
    if names := remains(folder.checkpoints):
        raise CheckpointError(
            f"{folder.checkpoints}: none of its checkpoints can be used ({', '.join(names)}); restore one from a "
            "copy, or train in another --out"
        )
    if folder.started:
        if left := [name for name in (RESULT, LAST) if (folder.path / name).exists()]:
            raise CheckpointError(
                f"{folder.path}: {left[0]} is of a checkpoint, and there is none any more; restore checkpoints/ from a "
                "copy, or train in another --out"
            )
        say(f"{folder.path}: has no checkpoint yet; it begins at step 1")
    return None
