"""Trainings killed with SIGKILL at random instants and inside a save, gone on with, and compared with one that was not.

`run_kills` is R1 of the plan and `run_chains` R2, each in as many trainings as it is asked for: a few in a test, a
hundred for a release. Nobody tidies up between a kill and the resume.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lrft.api.training.train import train
from lrft.training import checkpoint_folder
from lrft.training.folder import METRICS
from tests.reliability.struck import scratch_in
from tests.training.unbroken import same

PATIENCE = 300  # seconds that a training of the tiny model never takes
SLOW = 0.03  # seconds that a slowed fsync lasts
PRELOADED = ["lrft.api.training.train", "transformers.models.llama.modeling_llama", "bitsandbytes"]


@dataclass
class Figures:
    """What came of it.

    Attributes:
        runs: trainings that were killed at least once, and ended.
        kills: processes that were killed; `in_a_save`, where that was asked for, between two fsyncs of a checkpoint.
        identical: runs that ended with the bytes and the losses of the one that was never killed.
        redone: the most steps that a run took again after a kill, of `save_every` that are allowed.
        faults: one line for each run that did not.
    """

    runs: int = 0
    kills: int = 0
    in_a_save: int = 0
    identical: int = 0
    redone: int = 0
    save_every: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every run ended as the one that was never killed, and none lost more than a save."""
        return self.identical == self.runs > 0 and self.redone <= self.save_every and not self.faults

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}


class Trainings:
    """Processes that train one recipe. They begin with lrft imported, so that a kill meets a training.

    Args:
        recipe: trains in seconds.
        work: where runs go; what is there is removed.
        save_every: steps between checkpoints.
    """

    def __init__(self, recipe: Path, work: Path, save_every: int = 2) -> None:
        self.recipe, self.work, self.save_every = recipe, work, save_every
        shutil.rmtree(work, ignore_errors=True)
        os.environ["OMP_NUM_THREADS"] = "1"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.end(work / "warm")  # the server has started, and every file has been read once
        began = time.monotonic()
        self.end(work / "whole")
        self.seconds = time.monotonic() - began
        self.syncs = self.end(work / "slowed", slow=True)

    def start(self, out: Path, slow: bool = False) -> tuple[Any, Any]:
        """A process that begins or goes on in `out`, and the count of its fsyncs."""
        synced = self.context.Value("i", 0)
        arguments = (str(self.recipe), str(out), self.save_every, synced, SLOW if slow else 0.0)
        process = self.context.Process(target=_train, args=arguments)
        process.start()
        return process, synced

    def end(self, out: Path, slow: bool = False) -> int:
        """Train to the end; the number of fsyncs.

        Raises:
            AssertionError: it failed.
        """
        process, synced = self.start(out, slow)
        process.join(PATIENCE)
        assert process.exitcode == 0, f"{out}: the training ended with {process.exitcode}"
        return int(synced.value)

    def killed_anywhere(self, out: Path, draw: random.Random, part: float = 1.0) -> bool:
        """Kill a training at an instant drawn evenly from as long as one takes; False where it was over before.

        Args:
            part: of that time, from which the instant is drawn.
        """
        process, _ = self.start(out)
        time.sleep(draw.uniform(0.05, part) * self.seconds)
        return _killed(process)

    def killed_in_a_save(self, out: Path, draw: random.Random, part: float = 1.0) -> bool:
        """Kill a training while a checkpoint, or what follows it, is being written; False where it was over before."""
        process, synced = self.start(out, slow=True)
        wanted = draw.randint(1, max(1, round(part * self.syncs)))
        limit = time.monotonic() + PATIENCE
        while process.is_alive() and synced.value < wanted and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, SLOW))
        return _killed(process)


def run_kills(
    recipe: Path, work: Path, count: int, in_a_save: int, seed: int, told: Callable[[str], object] = print
) -> Figures:
    """`count` trainings, each killed once and gone on with; `in_a_save` of them inside a save. Runs go to `work`."""
    trainings, draw, figures = Trainings(recipe, work), random.Random(seed), Figures()
    figures.save_every = trainings.save_every
    while figures.runs < count:
        saving = figures.runs < in_a_save
        kill = trainings.killed_in_a_save if saving else trainings.killed_anywhere
        _one(trainings, figures, [kill], saving, draw, told)
    return figures


def run_chains(
    recipe: Path, work: Path, count: int, seed: int, links: int = 5, told: Callable[[str], object] = print
) -> Figures:
    """`count` trainings, each killed `links` times in a row before it may end."""
    trainings, draw, figures = Trainings(recipe, work), random.Random(seed), Figures()
    figures.save_every = trainings.save_every
    while figures.runs < count:
        kinds = (trainings.killed_in_a_save, trainings.killed_anywhere)
        kills = [partial(draw.choice(kinds), part=1 / links) for _ in range(links)]
        _one(trainings, figures, kills, False, draw, told)
    return figures


def _one(
    trainings: Trainings,
    figures: Figures,
    kills: list[Callable[[Path, random.Random], bool]],
    saving: bool,
    draw: random.Random,
    told: Callable[[str], object],
) -> None:
    """One run killed so often and then ended; one that was over before every kill had met it counts nothing."""
    out = trainings.work / "broken"
    shutil.rmtree(out, ignore_errors=True)
    met = 0
    for kill in kills:
        if kill(out, draw):
            met += 1
            figures.redone = max(figures.redone, _steps_to_redo(out))
    if met < len(kills):
        return
    figures.runs, figures.kills = figures.runs + 1, figures.kills + met
    figures.in_a_save += met if saving else 0
    try:
        trainings.end(out)
        same(out, trainings.work / "whole")
        assert scratch_in(out) == [], f"left behind: {scratch_in(out)}"
        figures.identical += 1
    except AssertionError as error:
        kept = out.with_name(f"fault-{figures.runs}")
        shutil.copytree(out, kept, dirs_exist_ok=True)
        figures.faults.append(f"run {figures.runs}: {str(error).splitlines()[0][:200]} (kept in {kept})")
    told(f"{figures.runs} runs, {figures.kills} kills, {figures.identical} identical")


def _steps_to_redo(out: Path) -> int:
    """Steps that were finished, and that no checkpoint holds."""
    saved = [checkpoint_folder.step_of(path) for path in checkpoint_folder.steps_in(out / "checkpoints")]
    lines = (out / METRICS).read_text().split("\n")[:-1] if (out / METRICS).is_file() else []
    done = int(json.loads(lines[-1])["step"]) if lines else 0
    return done - max(saved, default=0)


def _killed(process: Any) -> bool:
    process.kill()
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


def _train(recipe: str, out: str, save_every: int, synced: Any, slow: float) -> None:
    """What a process does: train, its fsyncs counted and slowed."""
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        with synced.get_lock():
            synced.value += 1
        time.sleep(slow)
        fsync(descriptor)

    os.fsync = counted
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    train(recipe, Path(out), resume=True, overrides=[f"train.save_every={save_every}"])
