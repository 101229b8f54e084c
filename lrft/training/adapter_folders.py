"""`last/` and `best/` of a run folder: the adapters of its newest checkpoint and of its best one, for other tools."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from lrft.core.notes import say
from lrft.core.run import Run
from lrft.core.swap import recover_folder, replace_folder
from lrft.files.json import read_object
from lrft.files.sums import MANIFEST, folder_fault, folder_manifest
from lrft.registry.errors import DamagedFile, LrftError
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
            LrftError: the disk is full or not writable.
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
        final = self.folder / BEST
        scratch = final.with_name(f".{BEST}.tmp")
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(self.folder / LAST, scratch, copy_function=_link)
            for name in (RECORD, MANIFEST):
                (scratch / name).unlink()  # and not the content of the other name
            (scratch / RECORD).write_bytes(record_bytes(record))
            (scratch / MANIFEST).write_bytes(folder_manifest(scratch))
            replace_folder(scratch, final)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise LrftError(
                f"{final}: could not be written ({error.strerror or error}). The checkpoints are intact; free some "
                "space and add --resume."
            ) from error


def record_bytes(record: Mapping[str, Json]) -> bytes:
    """What checkpoint.json holds."""
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _link(source: str, target: str) -> None:
    """Nobody writes into these files, whole folders are replaced; so a second name is as good as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _record(folder: Path) -> object:
    try:
        return read_object(folder / RECORD, within=folder)
    except DamagedFile:
        return None
