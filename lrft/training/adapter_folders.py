"""`last/` and `best/` of a run folder: the adapters of its newest checkpoint and of its best one, for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lrft.core.notes import say
from lrft.core.run import Run
from lrft.files.fresh_folder import fresh_folder, recover_folder
from lrft.files.json import read_object
from lrft.files.sums import MANIFEST, folder_fault, folder_manifest
from lrft.registry.errors import DamagedFile
from lrft.registry.json import Json
from lrft.training.scorer import Scorer
from lrft.training.within_run import BEST, LAST
from lrft.training.within_run import STANDS_FOR as RECORD

THEN = ", then add --resume; the checkpoints are intact"


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
        self.damaged: set[str] = set()

    def start(self, run: Run) -> None:
        """Write what a kill has left undone at the checkpoint that is gone on from."""
        if not run.step:
            return
        for name in (LAST, BEST):
            recover_folder(self.folder / name)
            if (self.folder / name).exists() and (problem := folder_fault(self.folder / name)):
                self.damaged.add(name)
                say(f"{self.folder / name}: {problem}")
        self.follow(run)
        if BEST in self.damaged:
            say(f"{self.folder / BEST}: is written again at the next best score")

    def follow(self, run: Run) -> None:
        """Bring them to the checkpoint of the step just finished.

        Raises:
            WriteError: the disk is full or not writable.
        """
        record: dict[str, Json] = {"step": run.step}
        if LAST in self.damaged or _record(self.folder / LAST) != record:
            self.write(self.folder / LAST, record)
            self.damaged.discard(LAST)
        if self.scorer is not None and self.scorer.best_step == run.step:
            best = {**record, self.scorer.metric.name: self.scorer.best}
            if BEST in self.damaged or _record(self.folder / BEST) != best:
                self._copy_as_best(best)
                self.damaged.discard(BEST)

    def _copy_as_best(self, record: dict[str, Json]) -> None:
        """The last adapter is the best: the same files by another name, where the file system has such."""
        with fresh_folder(self.folder / BEST, "replace", then=THEN) as fresh:
            for path in sorted((self.folder / LAST).iterdir()):
                if path.name not in (RECORD, MANIFEST):
                    fresh.link(path)
            fresh.write(RECORD, record_bytes(record))
            fresh.write(MANIFEST, folder_manifest(fresh.path))


def record_bytes(record: Mapping[str, Json]) -> bytes:
    """What checkpoint.json holds."""
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _record(folder: Path) -> object:
    try:
        return read_object(folder / RECORD, within=folder)
    except DamagedFile:
        return None
