"""R15: a long run holds no more memory and no more files after ten thousand steps than after one thousand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lrft.api.training.train import train
from lrft.build import callbacks
from lrft.core.callback import Callback
from lrft.core.run import Run
from tests.reliability.outcome import Outcome, tiny

GROWTH = 0.02


class Meter(Callback):
    """Resident bytes and open files after two steps of a run."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.bytes: dict[int, int] = {}
        self.files: dict[int, int] = {}

    def after_step(self, run: Run) -> None:
        if run.step in (self.first, self.last):
            self.bytes[run.step] = resident()
            self.files[run.step] = len(os.listdir("/proc/self/fd"))

    @property
    def growth(self) -> float:
        """Resident bytes that came between the two, as a share of those at the first."""
        return self.bytes[self.last] / self.bytes[self.first] - 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(n: int, seed: int) -> Outcome:
    """One run of n steps in bfloat16 with packed rows, of which nearly every one has a length of its own, and saves."""
    outcome, meter = Outcome(), Meter(max(1, n // 10), n)
    original = callbacks._timed_methods
    callbacks._timed_methods = lambda recipe: [*original(recipe), meter]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            overrides = [
                f"train.max_steps={n}",
                f"train.save_every={max(1, n // 100)}",
                f"train.seed={seed}",
                "train.batch_size=1",
            ]
            train(tiny(folder, [*overrides, "train.packing=true", "logging.every=500"]), folder / "run")
    finally:
        callbacks._timed_methods = original
    outcome.facts = {"growth": meter.growth, "bytes": float(meter.bytes[n]), "files": float(meter.files[n])}
    outcome.add(meter.growth < GROWTH, f"resident memory grew by {meter.growth:.1%} in {n} steps")
    same = meter.files[meter.first] == meter.files[meter.last]
    outcome.add(same, f"open files: {meter.files[meter.first]}, then {meter.files[meter.last]}")
    return outcome
