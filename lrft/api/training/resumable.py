"""Which checkpoint a run goes on from; a run that has lost what it was is not begun anew in silence."""

from __future__ import annotations

from lrft.core.notes import say
from lrft.recipe.schema import Recipe
from lrft.registry.errors import CheckpointError
from lrft.training.checkpoint_folder import open_newest, remains
from lrft.training.folder import RESULT, RUN, RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.relied import check_relied
from lrft.training.within_run import LAST


def check_known(folder: RunFolder) -> None:
    """Refuse to begin a run beside checkpoints that nobody knows the recipe of.

    Raises:
        CheckpointError: there are such.
    """
    if not folder.started and remains(folder.checkpoints):
        raise CheckpointError(
            f"{folder.path}: holds checkpoints and no recipe.yaml, so nobody knows what they are of; put recipe.yaml "
            "back, or train in another --out"
        )


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
