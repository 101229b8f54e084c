"""The run folder: where a training leaves everything, and how later commands find it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrft.files.failure import WriteError, tell_failures
from lrft.files.fresh_folder import remove_folder
from lrft.files.growing import Lock
from lrft.files.json import parse_object, read_object
from lrft.files.read import read_lines
from lrft.files.records import MetricsLine, RunRecord
from lrft.files.write import remove_file, write_changed, write_file
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import DamagedFile, UsageError
from lrft.training import run_manifest
from lrft.training.links import check_links
from lrft.training.opened import OpenCheckpoint
from lrft.training.run_manifest import KnownFiles, text_of
from lrft.training.within_run import ADAPTER, BEST, LAST, within_run

ROOT = Path("runs")
RECIPE, RUN, PLAN, RESULT = run_manifest.RECIPE, run_manifest.RUN, run_manifest.PLAN, run_manifest.RESULT
METRICS = "metrics.jsonl"
WRITTEN = "fidelity.json"  # beside a recipe, of what was made of a run
WITHOUT = {
    BEST: ", as no step was scored: train with train.eval_every and data.eval",
    LAST: " before its first checkpoint",
    ADAPTER: " before it is finished",
}
LONGEST_NAME = 100  # characters of a recipe's name in that of a folder


class RunFolder(KnownFiles):
    """Paths inside one run folder, and the lock that keeps a second process out.

    Attributes:
        chosen: the one checkpoint that a command was given, or None for the newest.
        opened: the one that was opened for it.
        trusted: whether code that comes with the base model may run: what the caller says, never what the folder says.
        path: the folder; `checkpoints/`, `adapter/` and `eval/` are below it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = Lock(path / ".lock")
        self.made = False  # by the lock
        self.chosen: Path | None = None
        self.opened: OpenCheckpoint | None = None
        self.trusted = False

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / "adapter"

    @property
    def evaluations(self) -> Path:
        """Scores and samples."""
        return self.path / "eval"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, of a finished run as they were when it ended.

        Raises:
            MissingFile, DamagedFile: there is none, or it is another by now.
        """
        self.check_grown(METRICS)
        file = self.path / METRICS
        return [parse_object(line.encode(), file, MetricsLine) for line in read_lines(file)]

    @property
    def started(self) -> bool:
        """Whether a training began here."""
        return (self.path / RECIPE).is_file()

    @property
    def day(self) -> str | None:
        """The day, as 2026-11-28, that chat templates were told when the training began; None in older folders."""
        day: str | None = self.read(RUN).get("date")
        return day

    @property
    def processes(self) -> int | None:
        """How many processes the training began with, which decides the rows of a step; None in a new folder."""
        processes: int | None = self.read(RUN).get("processes") if self.started else None
        return processes

    def lock(self) -> None:
        """Keep other trainings out until this process ends, however it ends.

        Raises:
            UsageError: another process is training here, or nothing can be written here.
        """
        check_links(self.path)
        try:
            self.made = not self.path.exists()
            taken = self._lock.take()
        except OSError as error:
            raise UsageError(
                f"--out {self.path}: cannot be made a run folder ({error.strerror}); give another one"
            ) from None
        if not taken:
            raise UsageError(
                f"{self.path}: another process is training here; wait for it or give another --out"
            )

    def unlock(self) -> None:
        """Let others train here again; the end of the process does the same. A folder without a run is as before."""
        if self._lock.is_held:
            if not self.started:
                self._leave_nothing()
            self._lock.give_back()

    def _leave_nothing(self) -> None:
        with suppress(WriteError, OSError):
            remove_file(self._lock.path)
            if self.made and not any(self.path.iterdir()):  # else it holds something that is not ours
                remove_folder(self.path)

    @property
    def is_locked(self) -> bool:
        """Whether a process trains here now."""
        return self._lock.is_taken

    def write(
        self, name: str, content: str | Mapping[str, object], then: str = "", changed: bool = False
    ) -> bool:
        """Write a small file whole or not at all; whether it was written.

        Args:
            then: what to do after the remedy of a failure.
            changed: leave alone one that says the same.

        Raises:
            WriteError: the disk is full or not writable.
        """
        path, text = self.path / name, text_of(content)
        if changed:
            return write_changed(path, text, then=then)
        write_file(path, text, then=then)
        return True

    def mark_as_latest(self) -> None:
        """Let `latest` find this run, which is gone on with though its record says what it said before.

        Raises:
            WriteError: the disk is not writable.
        """
        with tell_failures(self.path / RUN):
            os.utime(self.path / RUN)


def new_folder(recipe_name: str, root: Path = ROOT) -> Path:
    """A fresh path under `root`, named by recipe and time so that the newest sorts last."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe_name).strip("-.")[:LONGEST_NAME] or "run"
    stem = f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = root / stem, 1
    while path.exists():
        count += 1
        path = root / f"{stem}-{count}"
    return path


def latest(root: Path = ROOT, recipe_name: str | None = None, finished: bool = False) -> Path | None:
    """The run under `root` that started last, of one recipe if named, with a checkpoint if `finished`."""
    if not root.is_dir():
        return None
    runs = [path for path in root.iterdir() if (path / RUN).is_file() and (path / RECIPE).is_file()]
    if recipe_name is not None:
        runs = [path for path in runs if _recipe_name(path) == recipe_name]
    if finished:
        runs = [path for path in runs if any((path / "checkpoints").glob("step-*/manifest.json"))]
    return max(runs, key=lambda path: (path / RUN).stat().st_mtime_ns, default=None)


def find(run: RunFolder | Path | str | None, root: Path = ROOT) -> RunFolder:
    """The run folder that is meant: the one given or named, or the latest one that has a checkpoint.

    Raises:
        UsageError: there is none, or it holds links.
    """
    folder = _find(run, root)
    check_links(folder.path)
    return folder


def places(name: Path | str, root: Path = ROOT) -> list[Path]:
    """Where a run that is named may be: at that path, or below `root`, which a name does not lead out of."""
    path = Path(name)
    return [path] if path.is_absolute() or ".." in path.parts else [path, root / path]


def _find(run: RunFolder | Path | str | None, root: Path) -> RunFolder:
    if isinstance(run, RunFolder):
        return run
    if run is None:
        found = latest(root, finished=True)
        if found is None:
            raise UsageError(f"no run with a checkpoint under {root}/; train one first or name a run folder")
        return RunFolder(found)
    run = Path(run)
    # os.path answers where pathlib raises: a name that no file can have is no run.
    for candidate in places(run, root):
        if (inside := within_run(candidate)) is not None:
            folder = RunFolder(inside.run)
            folder.chosen = inside.checkpoint
            return folder
        if os.path.isfile(candidate / RECIPE):
            _check_written(candidate)
            return RunFolder(candidate)
        if candidate.name in (BEST, LAST, ADAPTER) and os.path.isfile(candidate.parent / RUN):
            why = WITHOUT[candidate.name]
            raise UsageError(f"{run}: the run has no {candidate.name}/{why}; name {candidate.parent}")
    known = [path.name for path in root.iterdir()] if root.is_dir() else []
    raise UsageError(f"{run} is not a run folder (it holds no {RECIPE}){did_you_mean(run.name, known)}")


def _check_written(path: Path) -> None:
    """Refuse what a run was merged or exported to.

    Raises:
        UsageError: says what reads it.
    """
    if os.path.isfile(path / WRITTEN) and not os.path.isfile(path / RUN):
        raise UsageError(
            f"{path}: is what lrft merge or lrft export wrote, and no run; name the run that it was made of, or see "
            f"lrft doctor {path} for what loads it"
        )


def _recipe_name(path: Path) -> str | None:
    try:
        name: str | None = read_object(path / RUN, RunRecord, within=path).get("recipe_name")
    except DamagedFile:
        return None
    return name
