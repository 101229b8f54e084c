"""R13: a training that runs out of memory in the midst of a step: what is saved stays, and what is advised then fits.

The limit is the system's own, on the data of one process, set when a step begins to a part of what the plan says that
the step takes. Micro-batches are large, so that what a process holds anyhow is the smaller part. The advice is run
under the same limit, from its first step to its last save.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lrft.api.planning.ahead import plan_ahead
from lrft.api.training.train import train
from lrft.build import callbacks
from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.model import heap
from lrft.registry.errors import LrftError, OutOfMemory
from lrft.training import checkpoint_folder
from tests.reliability.kills import PATIENCE, PRELOADED
from tests.reliability.outcome import Outcome, tiny_model
from tests.reliability.struck import scratch_in

SAVED = 1  # steps before the memory is taken away
ADVICE = re.compile(r"; ((?:[a-z_.]+=\S+ )+)(?:fits with|takes) ")
OF_A_STEP = ("gradients", "activations", "loss", "working")
RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: {method}, rank: 8}}
optimizer: {{method: adamw, lr: 0.001}}
data:
  train: {data}
  format: {{method: text}}
  too_long: truncate_right
train: {{max_steps: 2, batch_size: {rows}, max_length: 384, save_every: 1, packing: false, device: cpu}}
"""


class Squeeze(Callback):
    """Lowers the limit on this process's data when a step begins, to `bytes` or by `leave` above what is held."""

    def __init__(self, step: int, limit: Any, leave: int = 0) -> None:
        self.step, self.limit, self.leave = step, limit, leave

    def before_step(self, run: Run) -> None:
        if run.step + 1 != self.step:
            return
        heap.give_back()
        if self.leave:
            pages = int(Path("/proc/self/statm").read_text().split()[5])
            self.limit.value = pages * resource.getpagesize() + self.leave
        resource.setrlimit(resource.RLIMIT_DATA, (self.limit.value, resource.RLIM_INFINITY))


def check(n: int, seed: int) -> Outcome:
    """n trainings that lose their memory in the second step, and n with what they were advised."""
    outcome = Outcome()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Blocks that are freed go back to the system, so that the limit is on what is held.
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        folder = Path(name)
        for index in range(n):
            draw = random.Random(seed * 1_000_003 + index)
            fault = _one(context, folder, draw, folder / f"run-{index}")
            outcome.add(not fault, f"turn {index} of seed {seed}: {fault}")
    return outcome


def _one(context: Any, folder: Path, draw: random.Random, out: Path) -> str:
    """What went wrong, or nothing."""
    recipe = _recipe(folder, draw)
    planned = plan_ahead(recipe)["peaks"]["train"]
    leave = round(draw.uniform(0.5, 0.8) * sum(planned[part] for part in OF_A_STEP))  # type: ignore[literal-required]
    limit = context.Value("q", 0)
    code, said = _trained(context, recipe, out, SAVED + 1, limit, leave)
    if code != OutOfMemory.exit_code or not said.startswith("out of memory: ") or "\n" in said:
        return f"ended with {code}: {said}"
    if (found := ADVICE.search(said)) is None:
        return f"nothing is advised: {said}"
    steps = checkpoint_folder.steps_in(out / "checkpoints")
    broken = [problem for step in steps if (problem := checkpoint_folder.fault(step))]
    if max(map(checkpoint_folder.step_of, steps), default=0) != SAVED or broken or scratch_in(out):
        return f"left {[step.name for step in steps]}, {broken}, {scratch_in(out)}"
    advised = found[1].split()
    code, then = _trained(context, recipe, out.with_name(f"{out.name}-advised"), 1, limit, 0, advised)
    return "" if code == 0 else f"{' '.join(advised)} does not fit: {then} (advised by: {said})"


def _recipe(folder: Path, draw: random.Random) -> Path:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        words = " ".join(f"number {n} follows {n - 1};" for n in range(1, 400))
        rows.write_text("".join(json.dumps({"text": f"{k}: {words}"}) + "\n" for k in range(256)))
    path = folder / "recipe.yaml"
    chosen = {
        "method": draw.choice(("lora", "dora")),
        "rows": draw.choice((48, 64, 96)),
    }
    path.write_text(RECIPE.format(model=tiny_model(folder), data=rows, **chosen))
    return path


def _trained(
    context: Any,
    recipe: Path,
    out: Path,
    step: int,
    limit: Any,
    leave: int,
    overrides: list[str] | None = None,
) -> tuple[int, str]:
    """Train in a process; its exit code and its error."""
    told = out.with_suffix(".txt")
    arguments = (str(recipe), str(out), str(told), step, limit, leave, overrides or [])
    process = context.Process(target=_train, args=arguments)
    process.start()
    process.join(PATIENCE)
    with suppress(OSError):
        process.kill()
    return int(process.exitcode or 0), told.read_text() if told.exists() else ""


def _train(recipe: str, out: str, told: str, step: int, limit: Any, leave: int, overrides: list[str]) -> None:
    """What a process does: train until the memory is gone, and say what that was told as."""
    original = callbacks._timed_methods
    callbacks._timed_methods = lambda chosen: [*original(chosen), Squeeze(step, limit, leave)]
    try:
        train(Path(recipe), Path(out), overrides=overrides)
    except LrftError as error:
        Path(told).write_text(str(error))
        raise SystemExit(error.exit_code) from None
