"""Runs as processes of this machine: the `Executor` that is taken where nothing else is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from lrft.files.append import open_log
from lrft.lab.runs.executor import Handle, Work, last_line

WAIT = 0.1  # seconds between looks at the processes


class Processes:
    """This machine, its cores shared out among `jobs` processes."""

    name = "local processes"

    def __init__(self, jobs: int) -> None:
        self.jobs, self.pause = jobs, WAIT

    def start(self, work: Work) -> Handle:
        return _Process(work, threads(self.jobs))


class _Process:
    """One process of lrft, in a process group of its own so that a Ctrl-C reaches it through us alone, once.

    On Linux it is killed when we are: it would train on, where the same command is to go on from its last checkpoint.
    """

    def __init__(self, work: Work, threads: int) -> None:
        self.work, command = work, work.begin()
        self.began = time.monotonic()
        with open_log(work.log) as file:
            self.process = subprocess.Popen(
                [*tied(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                process_group=0,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def exit_code(self) -> int:
        return self.process.wait()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def last_line(self) -> str:
        return last_line(self.work.log)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def tied() -> list[str]:
    """What comes before a command that is to end with this process, where the system can do that."""
    here = sys.platform.startswith("linux")
    return [sys.executable, "-m", "lrft.lab.runs.tied", str(os.getpid())] if here else []


def threads(jobs: int) -> int:
    """Threads of each process: what the environment says, else the cores shared out evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, cores // jobs)
