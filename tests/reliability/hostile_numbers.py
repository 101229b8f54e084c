"""R7: a number that is none, put into a weight, a moment, a gradient or a loss of a running training."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from lrft.api.training.train import train
from lrft.build import callbacks
from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.registry.errors import NumericalError
from lrft.training import checkpoint_folder
from lrft.training.finite import non_finite
from tests.reliability.outcome import Outcome, tiny

STEPS = 4
VALUES = (math.nan, math.inf, -math.inf)


class Poison(Callback):
    """Gives one number of what `pick` chooses another value after a step, or after its backward pass."""

    def __init__(
        self, step: int, pick: Callable[[Run], torch.Tensor | None], value: float, place: int
    ) -> None:
        self.step, self.pick, self.value, self.place = step, pick, value, place

    def after_backward(self, run: Run) -> None:
        if self.pick is gradient and run.step + 1 == self.step:
            self._put(run)

    def after_step(self, run: Run) -> None:
        if self.pick is not gradient and run.step == self.step:
            self._put(run)

    @torch.no_grad()
    def _put(self, run: Run) -> None:
        tensor = self.pick(run)
        assert tensor is not None
        tensor.view(-1)[self.place % tensor.numel()] = self.value


def weight(run: Run) -> torch.Tensor:
    """An adapter's factor."""
    return run.parameters[2].param.data


def moment(run: Run) -> torch.Tensor:
    """What the optimizer keeps of it."""
    found: torch.Tensor = run.optimizer.state[run.parameters[2].param]["exp_avg_sq"]
    return found


def gradient(run: Run) -> torch.Tensor | None:
    """Its gradient."""
    return run.parameters[2].param.grad


def base(run: Run) -> torch.Tensor:
    """A frozen weight of the last layer."""
    found: torch.Tensor = run.model.hf.model.norm.weight.data
    return found


def check(n: int, seed: int) -> Outcome:
    """n runs of four steps, in each of which one number goes bad; nothing of it may be saved."""
    outcome = Outcome()
    for index in range(n):
        draw = random.Random(seed * 1_000_003 + index)
        pick = (weight, moment, gradient, base)[index % 4]
        step = draw.randint(1, STEPS - (pick is base))  # after the last step nothing reads the base again
        poison = Poison(step, pick, draw.choice(VALUES), draw.randrange(10**6))
        with tempfile.TemporaryDirectory() as folder:
            fault = _one(Path(folder), poison)
        outcome.add(not fault, f"{pick.__name__} in step {step} of seed {seed}: {fault}")
    return outcome


def _one(folder: Path, poison: Poison) -> str:
    """What went wrong, or nothing."""
    original = callbacks._timed_methods
    callbacks._timed_methods = lambda recipe: [*original(recipe), poison]
    run = folder / "run"
    try:
        train(tiny(folder, [f"train.max_steps={STEPS}"]), run)
        return "the run ended as if nothing had happened"
    except NumericalError as error:
        if "\n" in str(error) or ("training rows" not in str(error) and "in steps" not in str(error)):
            return f"the message does not say where: {error}"
    finally:
        callbacks._timed_methods = original
    files = [path for path in run.rglob("*.safetensors") if not path.name.startswith("non-finite")]
    bad = [f"{path.name}: {name}" for path in files for name in non_finite(load_file(path))]
    newest = checkpoint_folder.newest(run / "checkpoints", lambda line: bad.append(line))
    late = newest is not None and checkpoint_folder.step_of(newest) >= poison.step and poison.pick is not base
    return "; ".join(bad) or ("a checkpoint of the bad step is there" if late else "")
