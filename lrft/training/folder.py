"""The run folder: where a training leaves everything, and how later commands find it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

from lrft import __version__
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import LrftError, UsageError
from lrft.training.commit import commit_of
from lrft.training.links import check_links, open_lock
from lrft.training.records import Environment

ROOT = Path("runs")
RECIPE, RUN, PLAN, METRICS, RESULT = "recipe.yaml", "run.json", "plan.json", "metrics.jsonl", "result.json"
LONGEST_NAME = 100  # characters of a recipe's name in that of a folder
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "bitsandbytes", "safetensors", "pydantic")


class RunFolder:
    """Paths inside one run folder, and the lock that keeps a second process out.

    Attributes:
        chosen: the one checkpoint that a command was given, or None for the newest.
        trusted: whether code that comes with the base model may run: what the caller says, never what the folder says.
        path: the folder; `checkpoints/`, `adapter/` and `eval/` are below it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file: IO[str] | None = None
        self.chosen: Path | None = None
        self.trusted = False

    @property
    def checkpoints(self) -> Path:
        """Where `step-N` folders are."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / "adapter"

    @property
    def evaluations(self) -> Path:
        """Scores and samples."""
        return self.path / "eval"

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
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock_file = open(open_lock(self.path, os.O_RDWR | os.O_CREAT), "r+")  # noqa: SIM115 (until it ends)
        except OSError as error:
            raise UsageError(
                f"--out {self.path}: cannot be made a run folder ({error.strerror}); give another one"
            ) from None
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{self.path}: another process is training here; wait for it or give another --out"
            ) from None

    def unlock(self) -> None:
        """Let others train here again; the end of the process does the same."""
        if self.lock_file is not None:
            self.lock_file.close()
            self.lock_file = None

    @property
    def is_locked(self) -> bool:
        """Whether a process trains here now."""
        try:
            with open(open_lock(self.path, os.O_RDONLY)) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no training has begun here, or the file system knows no locks
            return False
        return False

    def write(self, name: str, content: str | Mapping[str, object]) -> None:
        """Write a small file whole or not at all.

        Raises:
            LrftError: the disk is full or not writable.
        """
        text = content if isinstance(content, str) else json.dumps(content, indent=2, sort_keys=True) + "\n"
        scratch = self.path / f".{name}.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text)
            os.replace(scratch, self.path / name)
        except OSError as error:
            raise LrftError(f"{self.path / name}: could not be written ({error.strerror})") from error

    def read(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.path / name).read_text())


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
    if (run / "manifest.json").is_file() and run.parent.name == "checkpoints":
        folder = RunFolder(run.parent.parent)
        folder.chosen = run
        return folder
    for candidate in places(run, root):
        if (candidate / RECIPE).is_file():
            return RunFolder(candidate)
    known = [path.name for path in root.iterdir()] if root.is_dir() else []
    raise UsageError(f"{run} is not a run folder (it holds no {RECIPE}){did_you_mean(run.name, known)}")


def environment() -> Environment:
    """Versions, hardware and git commit, for run.json. Holds no environment variable."""
    import torch

    hardware: dict[str, str | int | None] = {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {
        "versions": {"python": platform.python_version(), "lrft": __version__, **_versions()},
        "hardware": hardware,
        "git": commit_of(Path.cwd()),
        "command": Path(sys.argv[0]).name,
    }


@cache
def _versions() -> dict[str, str | None]:
    """Package -> its version, None where it is not installed; each is looked for in every folder of imports."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cpu() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _recipe_name(path: Path) -> str | None:
    try:
        name: str | None = json.loads((path / RUN).read_text()).get("recipe_name")
    except (OSError, ValueError):
        return None
    return name
