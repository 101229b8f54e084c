"""Callbacks that show a run: metrics.jsonl, and a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.notes import is_terminal, say, silent
from lrft.core.run import Run
from lrft.files.append import append
from lrft.files.json import parse_object
from lrft.files.read import LINES as MOST
from lrft.files.read import read_bytes, read_lines
from lrft.files.write import write_file
from lrft.registry.errors import DamagedFile, MissingFile

LINES = 100  # a run, where it is not said how many
CLOCK = ("seconds", "tokens_per_second", "memory_bytes")  # what differs from run to run
THEN = ", then add --resume; earlier checkpoints are intact"
WATCHED = 10.0  # seconds between lines about a task


class MetricsFile(Callback):
    """One JSON line per step in metrics.jsonl. On a resume, lines past the checkpoint are dropped first.

    The checkpoint keeps the line of its step, without the clock, and gives it back where the file has lost it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = 0.0
        self.line: dict[str, Any] = {}

    def start(self, run: Run) -> None:
        self.began = time.perf_counter()
        if self.line.get("step") == run.step:  # a score that a signal had cut short
            self.line = {**self.line, **_without_clock(run.metrics)}
        if run.rank or not (run.step or os.path.lexists(self.path)):
            return
        kept = self._kept(run.step)
        if kept and run.metrics and _step(kept[-1]) == run.step:
            kept[-1] = json.dumps({**json.loads(kept[-1]), **run.metrics})
        write_file(self.path, "".join(f"{line}\n" for line in kept), then=THEN)

    def _kept(self, step: int) -> list[str]:
        """The lines up to a step; what is damaged is told, and that of the checkpoint comes back from there.

        Raises:
            DamagedFile: the file is none that could be read.
        """
        try:
            text = read_bytes(self.path, MOST, self.path.parent).decode("utf-8", errors="replace")
        except MissingFile:
            text = ""
        steps = [(_step(line), line) for line in text.split("\n") if line]
        kept = [line for of, line in steps if of is not None and of <= step]
        damaged = sum(of is None for of, _ in steps)
        if step and (not kept or _step(kept[-1]) != step) and self.line.get("step") == step:
            kept.append(json.dumps(self.line))
            say(
                f"{self.path}: the line of step {step} was torn or missing; written again from the checkpoint"
            )
        elif damaged:
            say(f"{self.path}: {damaged} damaged lines were left out")
        if len(kept) < step:
            say(f"{self.path}: {step - len(kept)} of the lines up to step {step} are gone")
        return kept

    def state_dict(self) -> StateDict:
        return self.line

    def load_state_dict(self, state: StateDict) -> None:
        self.line = state

    def after_step(self, run: Run) -> None:
        run.metrics = {key: _plain(value) for key, value in run.metrics.items()}
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        run.record(
            seconds=round(seconds, 4), tokens_per_second=round(run.metrics.get("tokens", 0) / seconds, 1)
        )
        self.line = {"step": run.step, **_without_clock(run.metrics)}
        if run.rank == 0:
            line = json.dumps({"step": run.step, **run.metrics}) + "\n"
            append(self.path, line, then=THEN)


def _without_clock(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key not in CLOCK}


def _plain(value: object) -> object:
    """A 0-d tensor as a number, anything else as it is."""
    return value.item() if isinstance(value, torch.Tensor) else value


class Bar(Callback):
    """A progress bar with loss, rate, memory and time left; plain lines where there is no terminal.

    The first step has a line, so have the last and every step with a held-out score.

    Args:
        every: steps between the lines; by default as many as make about `LINES` of the run.
    """

    def __init__(self, every: int | None = None, console: Console | None = None) -> None:
        self.every = every
        self.console = console or Console(stderr=True, force_terminal=is_terminal(sys.stderr))
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.began = time.perf_counter()
        self.first = 0
        self.watched = time.monotonic()

    def start(self, run: Run) -> None:
        self.began, self.first = time.perf_counter(), run.step
        if run.rank or silent() or not self.console.is_terminal:
            return
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
        )
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console)
        self.progress.start()
        self.task = self.progress.add_task("", total=run.total_steps, completed=run.step)

    def after_step(self, run: Run) -> None:
        if run.rank:
            return
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=run.step, description=describe(run.metrics))
        elif self._is_due(run):
            left = (time.perf_counter() - self.began) / (run.step - self.first) * (run.total_steps - run.step)
            line = f"step {run.step}/{run.total_steps}  {describe(run.metrics)}  {left:.0f} s left"
            say(line)

    def watch(self, what: str, done: int, total: int) -> None:
        """Show how far a task is that is scored between two steps; off a terminal one line every few seconds."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=f"{what} {done}/{total}")
        elif done and time.monotonic() - self.watched >= WATCHED:
            self.watched = time.monotonic()
            say(f"{what} {done}/{total}")

    def _is_due(self, run: Run) -> bool:
        every = self.every or max(1, run.total_steps // LINES)
        ends = run.step in (self.first + 1, run.total_steps) or run.stop_signal is not None
        return ends or bool(_scored(run.metrics)) or run.step % every == 0

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def describe(metrics: Mapping[str, float]) -> str:
    """Loss, learning rate, reward where there is one, tokens per second and memory in one line."""
    parts = [f"loss {metrics['loss']:.4f}", f"lr {metrics['lr']:.2e}"]
    if "reward" in metrics:
        parts.append(f"reward {metrics['reward']:.4f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:.0f} tok/s")
    if "eval_loss" in metrics:
        parts.append(f"eval {metrics['eval_loss']:.4f}")
    parts += [f"{name} {metrics[name]:.4f}" for name in _scored(metrics) if "." in name]
    return "  ".join([*parts, f"{peak_memory() / 2**20:.0f} MiB"])


def _scored(metrics: Mapping[str, float]) -> list[str]:
    """The names of held-out scores among a step's numbers: the loss, and those of tasks, `TASK.SCORE`."""
    return [name for name in metrics if name == "eval_loss" or "." in name]


def peak_memory() -> int:
    """Most bytes this process has held: on the GPU since `forget_peak_memory`, where one is used, else resident."""
    if _on_gpu():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def forget_peak_memory() -> None:
    """Count the most bytes on the GPU anew; of resident memory the system keeps the count, and loading stays in it."""
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def damaged_lines(path: Path) -> tuple[list[int], int]:
    """Numbers of the lines of a metrics.jsonl that are none, and how many lines there are.

    Raises:
        DamagedFile: the file is none that could be read.
    """
    try:
        text = read_bytes(path, MOST, path.parent).decode("utf-8", errors="replace")
    except MissingFile:
        return [], 0
    lines = text.split("\n")
    lines = lines if lines[-1] else lines[:-1]
    return [number for number, line in enumerate(lines, 1) if _step(line) is None], len(lines)


def _step(line: str) -> int | None:
    """The step of a line; None of one that is damaged, or cut short by a kill."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and step >= 0 else None


def last_loss(lines: Path) -> float | None:
    """The training loss of the last line of metrics.jsonl; None where that says none."""
    try:
        written = read_lines(lines)
    except MissingFile:
        return None
    try:
        loss = parse_object(written[-1].encode(), lines)["loss"] if written else None
    except (DamagedFile, KeyError):
        return None
    return loss if isinstance(loss, float | int) else None
