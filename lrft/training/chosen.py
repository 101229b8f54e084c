"""Which checkpoint of a run is meant: the best, the last, or one by its step."""

from __future__ import annotations

import json
from pathlib import Path

from lrft.core.notes import say
from lrft.registry.errors import CheckpointError, UsageError
from lrft.training.adapter_folders import BEST, LAST
from lrft.training.checkpoint_folder import fault, newest, step_of, steps_in
from lrft.training.folder import RunFolder, find


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
    found = newest(folder.checkpoints, say)
    if found is None:
        raise UsageError(f"{folder.path}: has no checkpoint yet; train it first")
    return found


def best_known(checkpoint: Path) -> str | None:
    """The name of the best checkpoint, as this one knows it; None where no score was a number by then."""
    best: str | None = json.loads((checkpoint / "state.json").read_bytes()).get("best")
    return best


def _best(folder: RunFolder) -> Path:
    name = best_known(newest_of(folder))
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
