"""Runs as jobs of a cluster. Submission, the queue, and queueing again what ran out of time are `submitit`'s."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.core.notes import say
from lrft.files.failure import WriteError
from lrft.files.json import read_object
from lrft.files.records import Job as JobRecord
from lrft.files.write import remove_file, write_file
from lrft.lab.runs.executor import Handle, Work, last_line, parse_settings
from lrft.lab.runs.job import Training
from lrft.lab.runs.processes import threads
from lrft.registry.errors import LrftError, MissingExtra, UsageError, first_line

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

PAUSE = 1.0  # seconds between looks at the jobs; each look reads a shared folder


class Cluster:
    """A cluster that submitit submits to.

    What submitit writes is below `out/cluster`. The nodes have to share that folder, the interpreter, and what the
    recipes name.

    Args:
        name: `slurm`, `local` (submitit's jobs on this machine), or what a plugin of submitit is called.
        settings: `key=value` of submitit's `update_parameters`, such as `timeout_min=240`, `slurm_partition=gpu`.
        jobs: how many share this machine if it is the cluster.

    Raises:
        MissingExtra: submitit is not installed.
        UsageError: there is no such cluster here, or it has no such setting.
    """

    def __init__(self, name: str, settings: Sequence[str], out: Path, jobs: int) -> None:
        self.name, self.pause, self.root = name, PAUSE, out.absolute() / "cluster"
        # A folder of its own for each call: ids of local jobs are process ids, which come again.
        folder = self.root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        parameters = parse_settings(settings)
        self.executor, self.job_class = _executor(name)(folder)
        try:
            self.executor.update_parameters(**parameters)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(f"--cluster-set {' '.join(settings)}: {first_line(error)}") from error
        # A job on a node has cores of its own, which its threads are counted by.
        self.environment = {"OMP_NUM_THREADS": str(threads(jobs))} if name == "local" else {}

    def start(self, work: Work) -> Handle:
        """Submit work, or go on waiting for its job if a call before this one was cut off.

        Raises:
            LrftError: the job was not accepted.
        """
        known, stop = self.root / f"{work.name}.job", self.root / f"{work.name}.stop"
        job = self._alive(known)
        if job is not None:
            say(f"{work.run}: is job {job.job_id} already")
            return _Job(work, job, stop)
        command = work.begin()
        try:
            remove_file(stop)
            job = self.executor.submit(Training(command, work.log, stop, self.environment))
            _remember(job, known, json.dumps({"id": job.job_id, "folder": str(self.executor.folder)}))
        except (RuntimeError, OSError) as error:
            message = f"--cluster {self.name}: {work.run} could not be submitted: {first_line(error)}"
            raise LrftError(message) from error
        return _Job(work, job, stop)

    def _alive(self, known: Path) -> Job[int] | None:
        """The job that an earlier call submitted, if it is still in the queue or runs."""
        if not known.is_file():
            return None
        record = read_object(known, JobRecord)
        job = self.job_class(record["folder"], record["id"])
        return None if job.done(force_check=True) else job


def _remember(job: Job[int], known: Path, text: str) -> None:
    """Write down a job that was submitted; one that no later call would find is taken back."""
    try:
        write_file(known, text)
    except WriteError:
        job.cancel(check=False)
        raise


class _Job:
    """One process of lrft in the queue or on a node."""

    def __init__(self, work: Work, job: Job[int], stop: Path) -> None:
        self.work, self.job, self.stop_file = work, job, stop
        self.began, self.cancelled = time.monotonic(), False

    @property
    def ended(self) -> bool:
        return self.cancelled or self.job.done()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @cached_property
    def lost(self) -> Exception | None:
        """Why the job of a run that has ended left no exit code."""
        lost: Exception | None = self.job.exception()
        return lost

    @property
    def exit_code(self) -> int:
        return 1 if self.lost is not None else int(self.job.result())

    def last_line(self) -> str:
        said = last_line(self.work.log)
        if self.lost is None:
            return said
        return (
            f"job {self.job.job_id} was lost ({self.job.state}, see {self.job.paths.stderr}; longer jobs are asked for "
            f"with --cluster-set timeout_min=MINUTES), and the process last said: {said}"
        )

    def stop(self) -> None:
        """Through a file, see `Training`. What is still in the queue has nothing to save."""
        write_file(self.stop_file, "")
        if not self.job.paths.stdout.exists():
            self.kill()

    def kill(self) -> None:
        self.job.cancel(check=False)
        self.cancelled = True


def _executor(name: str) -> Callable[[Path], tuple[AutoExecutor, type[Job[int]]]]:
    """Folder -> submitit's executor of a cluster, and the class of its jobs.

    Raises:
        MissingExtra: submitit is not installed; the message holds the install line.
        UsageError: there is no such cluster here.
    """
    try:
        import submitit
        from submitit.core.plugins import get_executors
    except ImportError:
        raise MissingExtra(
            f"--cluster {name}: runs are submitted by submitit; install it with `pip install 'lrft[cluster]'`"
        ) from None
    # `debug` runs a job within this process, in the midst of its submission.
    known = {key: executor for key, executor in get_executors().items() if key != "debug"}
    if name not in known:
        raise UsageError(f"--cluster {name}: choose {' or '.join(sorted((*known, 'ray')))}")
    if known[name].affinity() < 0:
        raise UsageError(
            f"--cluster {name}: its commands are not found here; call this where jobs are submitted"
        )
    return lambda folder: (submitit.AutoExecutor(folder=folder, cluster=name), known[name].job_class)
