"""Runs as processes of `lrft train`, a few at a time. What is finished is kept, what is not goes on.

Where a process runs is an `Executor`'s business: `processes.py` on this machine, `cluster.py` and `on_ray.py` on a
cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.core import stop
from lrft.core.notes import say
from lrft.lab.runs.executor import Executor, Handle, Work, write_recipe
from lrft.lab.runs.outcome import DIVERGED, finished
from lrft.lab.runs.planned import PlannedRun
from lrft.lab.runs.processes import Processes
from lrft.registry.errors import Interrupted, LrftError, NumericalError
from lrft.training.folder import RunFolder


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


def run_all(
    runs: Sequence[PlannedRun],
    jobs: int,
    progress: Progress,
    cluster: Executor | None = None,
    after: Callable[[PlannedRun], None] | None = None,
    excused: Collection[int] = (),
) -> None:
    """Finish every run, `jobs` at a time; those that are finished are not run again.

    A run whose numbers stop being finite is finished too, without a loss. An interruption is passed on to the
    processes, which save before they stop.

    Args:
        cluster: where they run; by default as processes of this machine.
        after: is given every run that has ended.
        excused: exit codes with which a run is finished too, as one that diverged.

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

    def close(handle: Handle) -> None:
        _close(handle, progress, excused)
        if after is not None:
            after(handle.work.run)

    work_through(
        [training(run) for run in waiting],
        jobs,
        cluster or Processes(jobs),
        close,
        lambda: f"stopped with {progress.done} of {progress.total} runs finished; the same command goes on",
    )


def work_through(
    works: Sequence[Work],
    jobs: int,
    executor: Executor,
    close: Callable[[Handle], None],
    kept: Callable[[], str],
) -> None:
    """Start all work in its order, `jobs` at a time, and wait for it.

    Args:
        close: is given what has ended.
        kept: what is said of an interruption.

    Raises:
        LrftError: of `close`; what still runs was asked to stop.
        Interrupted: asked to stop, and so was what still ran.
    """
    waiting, active = list(works), list[Handle]()
    with stop.listening(), stop.held():  # what was started is ended here, and not by a poll
        try:
            while waiting or active:
                while waiting and len(active) < jobs and stop.asked() is None:
                    active.append(executor.start(waiting.pop(0)))
                for handle in [handle for handle in active if handle.ended]:
                    active.remove(handle)
                    close(handle)
                if stop.asked() is not None:
                    break
                time.sleep(executor.pause)
        finally:
            _end(active, executor.pause)
        if (number := stop.asked()) is not None:
            raise Interrupted(number, stop.sentence(number, kept()))


def training_command(recipe: Path, folder: Path) -> list[str]:
    """What one run is: a training that begins or goes on in `folder`."""
    return [sys.executable, "-m", "lrft", "train", str(recipe), "--out", str(folder), "--resume", "--json"]


def training(run: PlannedRun) -> Work:
    """What finishes a run."""

    def prepare() -> list[str]:
        return trusting(run, training_command(write_recipe(run), run.folder.absolute()))

    return Work(run, run.folder.name, prepare)


def trusting(run: PlannedRun, command: list[str]) -> list[str]:
    """The command, which may run code that comes with the base model where the caller's could."""
    return [*command, "--trust-remote-code"] if run.trusted else command


def _close(handle: Handle, progress: Progress, excused: Collection[int]) -> None:
    """Take note of how a run ended.

    Raises:
        LrftError: neither finished nor diverged.
    """
    run, code = handle.work.run, handle.exit_code
    if code == 0 and finished(run):
        progress.note(run, "done", handle.seconds)
        return
    if code == NumericalError.exit_code or code in excused:
        RunFolder(run.folder).write(DIVERGED, {"message": (said := handle.last_line())})
        progress.note(run, "diverged" if code == NumericalError.exit_code else said, handle.seconds)
        return
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    error = LrftError(
        f"{run}: the run ended with {how}: {handle.last_line()} (all it said is in {handle.work.log}); the same "
        "command goes on from here"
    )
    error.exit_code = code if 0 < code < 128 else 1
    raise error


def _end(handles: Sequence[Handle], pause: float) -> None:
    """Ask runs to save and stop, and wait for them; asked again, kill them."""
    if handles:
        say(f"waiting for {len(handles)} runs to save; interrupt again to kill them")
    try:
        for handle in handles:
            if not handle.ended:
                handle.stop()
        while not all(handle.ended for handle in handles):
            time.sleep(pause)
    except (stop.Stopped, KeyboardInterrupt):
        for handle in handles:
            handle.kill()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
