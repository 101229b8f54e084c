"""What a job of a cluster does: one process of lrft, and its exit code.

Imports little of lrft, so that the job holds no more memory than it needs beside the training.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.files.append import open_log
from lrft.files.write import write_file

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PAUSE = 0.5  # seconds between looks for the file that stops a training
STOPPED = 128 + signal.SIGINT


@dataclass
class Training:
    """Called in the job; `submitit` calls `checkpoint` when the job's time is over or its node is taken away.

    Attributes:
        log: what the training prints is appended to it.
        stop: once this file exists, the training is asked to save and stop. A file reaches every node, a signal does
            not: on a cluster that tracks processes by control group, it ends at the job's first process.
        environment: of the training, on top of the job's own.
        tied: kill the training when the job's process ends, see `tied.py`.
    """

    command: list[str]
    log: Path
    stop: Path
    environment: dict[str, str]
    tied: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    asked: bool = field(default=False, init=False)

    def __call__(self) -> int:
        """Train to the end; the exit code, -N for signal N."""
        if self.stop.exists():
            return STOPPED
        before = [sys.executable, "-m", "lrft.lab.runs.tied", str(os.getpid())] if self.tied else []
        with open_log(self.log) as file:
            self.process = subprocess.Popen(
                [*before, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                process_group=0,
            )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return self.process.wait(timeout=PAUSE)
                if self.stop.exists() and not self.asked:
                    self._ask()
        except KeyboardInterrupt:
            self._ask()
            raise

    def checkpoint(self) -> DelayedSubmission:
        """Save and stop; what is to be queued again goes on from there."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            if not self.asked:
                self._ask()
            # Called by a signal that may have come in the midst of `wait`, whose lock another one would wait for.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))

    def _ask(self) -> None:
        """Ask the training to save and stop; asked before, kill it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL if self.asked else signal.SIGINT)
            self.asked = True


def run_task(training: Training, begun: Path) -> int:
    """What a task of Ray does: say by a file that it has begun, and train to the end; the exit code."""
    write_file(begun, "")
    return training()
