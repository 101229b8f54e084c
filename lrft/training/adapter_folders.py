"""`last/` and `best/` of a run folder: the adapters of its newest checkpoint and of its best one, for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lrft.core.run import Run
from lrft.core.swap import recover_folder
from lrft.registry.json import Json
from lrft.training.scorer import Scorer

BEST, LAST = "best", "last"
RECORD = "checkpoint.json"  # in either: which checkpoint it is


class AdapterFolders:
    """Keeps both up to date with the checkpoints. Each is at any moment a whole folder, of the old step or of the new.

    A run that was killed between a checkpoint and its folders writes them as soon as it is gone on with.

    Args:
        folder: the run folder.
        write: writes the adapter as it is now into a folder, with what checkpoint.json holds.
        scorer: knows the best step; None where nothing is scored, and then there is no `best/`.
    """

    def __init__(
        self, folder: Path, write: Callable[[Path, Mapping[str, Json]], object], scorer: Scorer | None
    ) -> None:
        self.folder, self.write, self.scorer = folder, write, scorer

    def start(self, run: Run) -> None:
        """Write what a kill has left undone at the checkpoint that is gone on from."""
        if run.step:
            for name in (LAST, BEST):
                recover_folder(self.folder / name)
            self.follow(run)

    def follow(self, run: Run) -> None:
        """Bring them to the checkpoint of the step just finished.

        Raises:
            LrftError: the disk is full or not writable.
        """
        record: dict[str, Json] = {"step": run.step}
        if self.scorer is not None and self.scorer.best_step == run.step:
            best = {**record, self.scorer.metric.name: self.scorer.best}
            self._write(BEST, best)
        self._write(LAST, record)

    def _write(self, name: str, record: dict[str, Json]) -> None:
        if _record(self.folder / name) != record:
            self.write(self.folder / name, record)


def _record(folder: Path) -> object:
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
