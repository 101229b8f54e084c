"""Runs as tasks of a Ray cluster. The queue, the place, and trying again what lost its node are Ray's."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lrft.core.notes import say
from lrft.files.write import remove_file, write_file
from lrft.lab.runs.executor import Handle, Work, last_line, parse_settings
from lrft.lab.runs.job import Training, run_task
from lrft.registry.errors import LrftError, MissingExtra, UsageError, first_line
from lrft.registry.json import Json

PAUSE = 0.5  # seconds between looks at the tasks
DEFAULTS: dict[str, Json] = {"num_cpus": 1, "max_retries": 3}  # of a task: tries after a lost node
HERE = "local"  # the address of a cluster that is begun on this machine and ends with the command
TAKEN_ALONG = ("HF_", "LRFT_", "PYTHONPATH")  # of the caller's environment; all else is the node's


class Ray:
    """A Ray cluster.

    Tasks end with the command that began them, whatever ends it; the same command goes on from their checkpoints. The
    nodes have to share the folder of the runs, the interpreter, and what the recipes name.

    Args:
        settings: `key=value` of Ray's options of a task, such as `num_cpus=4`, `num_gpus=1`; and `address`: `auto` for
            the cluster that this machine is a node of, HOST:PORT, or `local`.
        out: what tells a task to stop is below `out/cluster`.

    Raises:
        MissingExtra: Ray is not installed.
        UsageError: there is no such cluster, or a task has no such option.
    """

    name = "ray"

    def __init__(self, settings: Sequence[str], out: Path) -> None:
        self.pause, self.root = PAUSE, out.absolute() / "cluster"
        options = DEFAULTS | parse_settings(settings)
        self.ray = _join(str(options.pop("address", "auto")))
        try:
            self.task = self.ray.remote(**options)(run_task)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--cluster-set {' '.join(settings)}: {first_line(error)}") from error
        for line in _without_room(options, self.ray.nodes()):
            say(line)

    def start(self, work: Work) -> Handle:
        """Submit work.

        Raises:
            LrftError: Ray did not take it.
        """
        stop, begun = self.root / f"{work.name}.stop", self.root / f"{work.name}.begun"
        training = Training(work.begin(), work.log, stop, _environment(), tied=True)
        for file in (stop, begun):
            remove_file(file)
        try:
            reference = self.task.options(name=work.name).remote(training, begun)
        except (self.ray.exceptions.RayError, ValueError, RuntimeError) as error:
            raise LrftError(
                f"--cluster ray: {work.run} could not be submitted: {first_line(error)}"
            ) from error
        return _Task(work, self.ray, reference, stop, begun)


class _Task:
    """One process of lrft in Ray's queue or on a node."""

    def __init__(self, work: Work, ray: ModuleType, reference: object, stop: Path, begun: Path) -> None:
        self.work, self.ray, self.reference = work, ray, reference
        self.stop_file, self.begun = stop, begun
        self.began, self.cancelled = time.monotonic(), False

    @property
    def ended(self) -> bool:
        return self.cancelled or bool(self.ray.wait([self.reference], timeout=0)[0])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @cached_property
    def outcome(self) -> int | Exception:
        """The exit code of a process that has ended, or why the task left none."""
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError as error:
            lost: Exception = error
            return lost

    @property
    def exit_code(self) -> int:
        return 1 if isinstance(self.outcome, Exception) else self.outcome

    def last_line(self) -> str:
        said = last_line(self.work.log)
        if not isinstance(self.outcome, Exception):
            return said
        kind = type(self.outcome).__name__
        return (
            f"its task was lost ({kind}: {first_line(self.outcome)}; --cluster-set max_retries=N tries more often), "
            f"and the process last said: {said}"
        )

    def stop(self) -> None:
        """Through a file, see `Training`. What is still in the queue has nothing to save."""
        write_file(self.stop_file, "")
        if not self.begun.exists():
            self.kill()

    def kill(self) -> None:
        self.ray.cancel(self.reference, force=True)
        self.cancelled = True


def _join(address: str) -> ModuleType:
    """Ray, this process being a driver of the cluster at the address.

    Raises:
        MissingExtra: Ray is not installed; the message holds the install line.
        UsageError: there is no cluster.
    """
    try:
        ray = import_module("ray")
    except ImportError:
        raise MissingExtra("--cluster ray: install Ray with `pip install 'lrft[ray]'`") from None
    if address.startswith("ray://"):
        raise UsageError(
            f"--cluster-set address={address}: a driver that is no node is not supported; call this on a node of the "
            "cluster, where no address is needed"
        )
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # lrft sends nothing home, nor does what it starts
    # Ray's own handler of SIGTERM ends the process there and then, and the runs would not save.
    before = signal.getsignal(signal.SIGTERM)
    begun = {"include_dashboard": False} if address == HERE else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **begun)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(
            f"--cluster ray: no cluster at {address} ({first_line(error)}); begin one with `ray start --head`, or "
            f"write --cluster-set address={HERE} for one on this machine that ends with the command"
        ) from error
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)
    return ray


def _without_room(options: Mapping[str, Json], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said of tasks that no node can hold, which Ray keeps in its queue until one can."""
    found = []
    for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        most = max((node["Resources"].get(resource, 0) for node in nodes if node["Alive"]), default=0)
        wanted = options.get(option)
        if isinstance(wanted, int | float) and wanted > most:
            found.append(
                f"--cluster-set {option}={wanted:g}: the largest node has {most:g}; runs wait until one joins with more"
            )
    return found


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(TAKEN_ALONG)}
