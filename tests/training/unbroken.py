"""A run that was stopped beside the run that was not: how it stops, and what of the two has to be the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from lrft.api.training.train import train
from lrft.recipe.load import LoadedRecipe
from lrft.training import checkpoint_folder
from lrft.training.folder import METRICS, RESULT
from lrft.training.gradient_check import GradientCheck

TIMED = ("seconds", "tokens_per_second", "memory_bytes")
# Six steps of a smoke recipe. What happens every second step happens before and after the checkpoint of step 3 and not
# at it; a chain of two links passes from one to the other there.
SIX_STEPS = [
    "train.max_steps=6",
    "train.save_every=3",
    "train.keep_last=9",
    "train.eval_every=4",
    "train.device=cpu",
    "data.train.limit=30",
    "data.eval.limit=4",
]
COSINE = "schedule={method: cosine, warmup_ratio: 0.2}"  # of recipes that are not about a schedule


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """Every line of the run's metrics, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [tuple((k, str(v)) for k, v in line.items() if k not in TIMED) for line in lines]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that must be byte for byte the same: the adapter folder and the last checkpoint."""
    last = max((folder / "checkpoints").glob("step-*"), key=checkpoint_folder.step_of)
    chosen = [*sorted((folder / "adapter").glob("adapter*")), *sorted(last.iterdir())]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in chosen}


def same(broken: Path, whole: Path) -> None:
    """Fail where the run that was stopped is not the one that was not."""
    assert losses(broken) == losses(whole)
    found, expected = files_of(broken), files_of(whole)
    assert [name for name in expected | found if expected.get(name) != found.get(name)] == []


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """A real signal, delivered when the given step's parameters have just moved."""
    after_step = GradientCheck.after_step

    def moved(self: GradientCheck, run: Any) -> None:
        after_step(self, run)
        if run.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(GradientCheck, "after_step", moved)


def cut_off(whole: Path, step: int, folder: Path) -> Path:
    """A copy of a finished run as a power cut in the step after the checkpoint of `step` would have left it."""

    def later(parent: str, names: list[str]) -> list[str]:
        return [
            n for n in names if n.startswith("step-") and checkpoint_folder.step_of(Path(parent) / n) > step
        ]

    shutil.copytree(whole, folder, ignore=later)
    (folder / RESULT).unlink()
    shutil.rmtree(folder / "adapter")
    lines = (whole / METRICS).read_text().splitlines(keepends=True)
    (folder / METRICS).write_text("".join(lines[: step + 1]))
    assert (folder / "checkpoints" / f"step-{step}").is_dir()
    return folder


def goes_on_unbroken(loaded: LoadedRecipe, whole: Path, step: int, folder: Path) -> None:
    """Cut the finished run off after `step`, go on, and compare."""
    train(loaded, cut_off(whole, step, folder), resume=True)
    same(folder, whole)
