"""Which checkpoint of a run is meant: the best, the last, or one by its step."""

from __future__ import annotations

from pathlib import Path

from lrft.core.notes import say
from lrft.registry.errors import CheckpointError, UsageError
from lrft.training.checkpoint_folder import fault, open_newest, remains, step_of, steps_in
from lrft.training.folder import RunFolder, find
from lrft.training.opened import OpenCheckpoint
from lrft.training.within_run import BEST, LAST


def find_checkpoint(run: RunFolder | Path | str | None, name: str | None = None) -> RunFolder:
    """The run that is meant (see `find`), standing for its checkpoint `best`, `last` or `step-N` where one is named.

    Raises:
        UsageError: there is no such run or checkpoint, nothing was scored, or a checkpoint was named already.
        CheckpointError: it does not verify.
    """
    folder = find(run)
    if name is None:
        return folder
    if folder.chosen is not None:
        raise UsageError(
            f"--checkpoint {name}: {folder.chosen} is a checkpoint already; leave the option out, or name the run"
        )
    found = newest_of(folder) if name == LAST else _best(folder) if name == BEST else _of_step(folder, name)
    if problem := fault(found):
        raise CheckpointError(f"{found}: {problem}")
    if found.name != name:
        say(f"--checkpoint {name}: {found.name}")
    folder.chosen = found
    return folder


def newest_of(folder: RunFolder) -> Path:
    """The newest checkpoint that verifies.

    Raises:
        UsageError: there is none.
    """
    with open_newest_of(folder) as found:
        return found.path


def open_newest_of(folder: RunFolder) -> OpenCheckpoint:
    """The same with its files open.

    Raises:
        UsageError: there is none.
        CheckpointError: there are some, and none verifies.
    """
    found = open_newest(folder.checkpoints, say)
    if found is not None:
        return found
    if names := remains(folder.checkpoints):
        raise CheckpointError(
            f"{folder.checkpoints}: none of its checkpoints can be used ({', '.join(names)}); restore one from a copy"
        )
    raise UsageError(f"{folder.path}: has no checkpoint yet; train it first")


def open_chosen(folder: RunFolder) -> OpenCheckpoint:
    """The checkpoint that was named, or the newest good one, its files open; says so where another one is the best.

    Raises:
        UsageError: there is none yet.
        CheckpointError: the one that was named does not verify.
    """
    if folder.chosen is None:
        found = open_newest_of(folder)
        best = best_known(found) if folder.opened is None else None  # said when it was opened first
        if best not in (None, found.path.name):
            say(
                f"this is the last checkpoint, {found.path.name}; the best one is {folder.checkpoints / str(best)}"
            )
    else:
        found = OpenCheckpoint(folder.chosen)
        if problem := found.fault():
            found.close()
            raise CheckpointError(f"{found.path}: {problem}; leave it out for the newest one that is whole")
    folder.opened = found
    return found


def best_known(saved: OpenCheckpoint) -> str | None:
    """The name of the best checkpoint, as this one knows it; None where no score was a number by then."""
    best: str | None = saved.state().get("best")
    return best


def _best(folder: RunFolder) -> Path:
    with open_newest_of(folder) as last:
        name = best_known(last)
    if name is None:
        raise UsageError(
            f"--checkpoint {BEST}: {folder.path} has no score that could be the best; train with train.eval_every and "
            f"data.eval, or choose {LAST} or step-N"
        )
    return folder.checkpoints / name


def _of_step(folder: RunFolder, name: str) -> Path:
    found = folder.checkpoints / name
    present = sorted(steps_in(folder.checkpoints), key=step_of)
    if found not in present:
        there = ", ".join(path.name for path in present) or "none"
        raise UsageError(f"--checkpoint {name}: choose {BEST}, {LAST}, or one of those there are ({there})")
    return found
