"""Runs as processes of `lrft train`, a few at a time. What is finished is kept, what is not goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lrft.compare.outcome import DIVERGED, finished
from lrft.compare.plan import PlannedRun
from lrft.core.errors import Interrupted, LrftError, NumericalError
from lrft.recipe.resolved import resolved
from lrft.train.folder import RunFolder

WAIT = 0.1  # seconds between looks at the processes


@dataclass
class Progress:
    """How far a comparison is, one line on standard error for each run that ends."""

    total: int
    jobs: int
    done: int = 0
    ran: int = 0
    seconds: float = 0.0

    def note(self, run: PlannedRun, outcome: str, seconds: float | None = None) -> None:
        """A run has ended, or was finished before (no `seconds`)."""
        self.done += 1
        if seconds is None:
            return
        self.ran, self.seconds = self.ran + 1, self.seconds + seconds
        left = self.seconds / self.ran * (self.total - self.done) / self.jobs
        ending = f", about {_duration(left)} left" if self.done < self.total else ""
        say(f"[{self.done}/{self.total}] {run}: {outcome} ({_duration(seconds)}){ending}")


def say(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr, flush=True)


def run_all(runs: Sequence[PlannedRun], jobs: int, progress: Progress) -> None:
    """Finish every run, `jobs` at a time; those that are finished are not run again.

    A run whose numbers stop being finite is finished too, without a loss. An interruption is passed on to the
    processes, which save before they stop.

    Raises:
        LrftError: a run failed otherwise; it has the exit code of that run.
        Interrupted: asked to stop; the same call goes on.
    """
    waiting = []
    for run in runs:
        if finished(run):
            progress.note(run, "")
        else:
            waiting.append(run)
    active: list[_Process] = []
    with _Stop() as stop:
        try:
            while waiting or active:
                while waiting and len(active) < jobs and stop.signal is None:
                    active.append(_Process(waiting.pop(0), jobs))
                for process in [process for process in active if process.ended]:
                    active.remove(process)
                    _close(process, progress)
                if stop.signal is not None:
                    break
                time.sleep(WAIT)
        finally:
            _end(active)
    if stop.signal is not None:
        message = f"stopped with {progress.done} of {progress.total} runs finished; the same command goes on"
        raise Interrupted(stop.signal, message)


def threads(jobs: int) -> int:
    """Threads of each process: what the environment says, else the cores shared out evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, cores // jobs)


def training_command(recipe: Path, folder: Path) -> list[str]:
    """What one run is: a training that begins or goes on in `folder`."""
    return [sys.executable, "-m", "lrft", "train", str(recipe), "--out", str(folder), "--resume", "--json"]


class _Process:
    """One `lrft train`, in a process group of its own so that a Ctrl-C reaches it through us alone, once."""

    def __init__(self, run: PlannedRun, jobs: int) -> None:
        self.run, root = run, run.folder.parent.parent
        recipe, self.log = (
            root / "recipes" / f"{run.folder.name}.yaml",
            root / "logs" / f"{run.folder.name}.log",
        )
        try:
            for path in (recipe, self.log):
                path.parent.mkdir(parents=True, exist_ok=True)
            recipe.write_text(resolved(run.recipe))
            self.file = self.log.open("w")
        except OSError as error:
            raise LrftError(f"--out {root}: cannot be written ({error.strerror})") from error
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            training_command(recipe, run.folder),
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads(jobs))},
            process_group=0,
        )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def last_line(self) -> str:
        """The error that the process printed, or the last thing it said."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1]


class _Stop:
    """While it is open, the first SIGINT or SIGTERM is remembered; the second acts as it always does."""

    def __enter__(self) -> _Stop:
        self.signal: int | None = None
        self.previous: dict[int, Any] = {}
        with suppress(ValueError):  # not the main thread: signals are somebody else's
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def _close(process: _Process, progress: Progress) -> None:
    """Take note of how a process ended.

    Raises:
        LrftError: neither finished nor diverged.
    """
    process.file.close()
    run, code = process.run, process.process.returncode
    if code == 0 and finished(run):
        progress.note(run, "done", process.seconds)
        return
    if code == NumericalError.exit_code:
        RunFolder(run.folder).write(DIVERGED, {"message": process.last_line()})
        progress.note(run, "diverged", process.seconds)
        return
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    error = LrftError(
        f"{run}: the run ended with {how}: {process.last_line()} (all it said is in {process.log}); the same command "
        "goes on from here"
    )
    error.exit_code = code if 0 < code < 128 else 1
    raise error


def _end(processes: Sequence[_Process]) -> None:
    """Ask the processes to save and stop, and wait for them; asked again, kill them."""
    if processes:
        say(f"waiting for {len(processes)} runs to save; interrupt again to kill them")
    try:
        for process in processes:
            if not process.ended:
                process.process.send_signal(signal.SIGINT)
        for process in processes:
            process.process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.process.kill()
            process.process.wait()
    for process in processes:
        process.file.close()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
