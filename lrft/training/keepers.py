"""Callbacks that keep a run: checkpoints, the loss at which it ends, the scale of losses, and signals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.run import Run
from lrft.files.failure import tell_failures
from lrft.files.write import sync
from lrft.training import checkpoint, checkpoint_folder
from lrft.training.adapter_folders import AdapterFolders
from lrft.training.folder import METRICS
from lrft.training.scorer import Scorer


class Saver(Callback):
    """Saves every `every` steps, at a signal, after a best score and at the end; keeps the newest few and the best.

    Args:
        tensors: gives the adapter's tensors by name.
        folder: where `step-N` folders go.
        adapters: `last/` and `best/`, which follow the checkpoints; None for checkpoints alone.
    """

    def __init__(
        self,
        tensors: Callable[[], dict[str, Tensor]],
        folder: Path,
        identity: checkpoint.Identity,
        every: int,
        keep_last: int,
        scorer: Scorer | None = None,
        adapters: AdapterFolders | None = None,
    ) -> None:
        self.tensors, self.folder, self.identity = tensors, folder, identity
        self.every, self.keep_last, self.scorer, self.adapters = every, keep_last, scorer, adapters
        self.finite = 0  # the step after which every number was last seen to be finite

    def start(self, run: Run) -> None:
        if run.rank:
            return
        self.finite = run.step
        if self.adapters is not None:
            self.adapters.start(run)
        if self.scorer is not None and self.scorer.paid and run.step == run.total_steps:
            self.save(run, anew=True)  # no later checkpoint knows the score that this one owes

    def after_step(self, run: Run) -> None:
        improved = self.scorer is not None and self.scorer.best_step == run.step
        due = run.step % self.every == 0 or run.at_an_end
        if run.rank == 0 and (due or improved or run.stopping):
            self.save(run)
        if run.accelerator is not None and run.accelerator.num_processes > 1:
            run.accelerator.wait_for_everyone()

    def save(self, run: Run, anew: bool = False) -> Path:
        """Write the checkpoint of the step just finished and the adapters, then drop the old ones.

        Args:
            anew: in the place of one of this step that is there.
        """
        for lines in self.folder.parent.glob(METRICS):
            with tell_failures(lines, then=checkpoint_folder.THEN):
                sync(lines)  # a checkpoint never knows of steps that the record lost to a power cut
        best = f"step-{self.scorer.best_step}" if self.scorer is not None and self.scorer.best_step else None
        saved = checkpoint.save_checkpoint(
            run, self.tensors(), self.folder, self.identity, {"best": best}, anew, self.finite
        )
        self.finite = run.step
        if self.adapters is not None:
            self.adapters.follow(run)
        checkpoint_folder.prune(self.folder, self.keep_last, best)
        return saved


class StopAtLoss(Callback):
    """Ends the run once the smoothed training loss is at or below a target, so that runs compare at equal loss.

    Smoothed is the exponential mean over ten steps, each step weighed so that the first count fully. Stands before
    what scores and saves: the step becomes the last one. A target that is not reached leaves the run as long as it was.
    """

    KEEP = 0.9  # of the mean, a step

    def __init__(self, target: float) -> None:
        self.target = target
        self.mean, self.weight = 0.0, 0.0

    @property
    def smoothed(self) -> float:
        """Mean loss of the last steps; infinite before the first."""
        return self.mean / self.weight if self.weight else math.inf

    def start(self, run: Run) -> None:
        self._end(run)  # resumed after the step that was the last one

    def after_step(self, run: Run) -> None:
        self.mean = self.KEEP * self.mean + (1 - self.KEEP) * run.metrics["loss"]
        self.weight = self.KEEP * self.weight + (1 - self.KEEP)
        self._end(run)

    def finish(self, run: Run) -> None:
        run.summary["smoothed_loss"] = self.smoothed

    def _end(self, run: Run) -> None:
        if self.smoothed <= self.target:
            run.total_steps = run.step

    def state_dict(self) -> StateDict:
        return {"mean": self.mean, "weight": self.weight}

    def load_state_dict(self, state: StateDict) -> None:
        self.mean, self.weight = state["mean"], state["weight"]


class LossScale(Callback):
    """float16 gradients underflow unless the loss is scaled up; keeps the scale across a resume."""

    def __init__(self, device: str = "cuda") -> None:
        self.scaler = torch.amp.GradScaler(device)

    def start(self, run: Run) -> None:
        run.scaler = self.scaler

    def state_dict(self) -> StateDict:
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: StateDict) -> None:
        self.scaler.load_state_dict(state)


class StopOnSignal(Callback):
    """Once somebody asked to stop (`lrft.core.stop`), the step just finished is the last one, and is saved.

    Stands before the saver. With several processes all stop after the same step, whichever got the signal first.
    """

    def after_step(self, run: Run) -> None:
        if run.accelerator is not None and run.accelerator.num_processes > 1:
            mine = torch.tensor([float(run.stop_signal or 0)], device=run.device)
            run.stop_signal = int(run.accelerator.gather(mine).max()) or None
        run.stopping = run.stop_signal is not None


class GoneByParts(Callback):
    """Says after the first step what of it went without the kernels of this machine, and why; once."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def start(self, run: Run) -> None:
        if run.kernels is not None:
            run.kernels.missed.clear()

    def after_step(self, run: Run) -> None:
        missed = {} if run.kernels is None or run.rank else run.kernels.missed
        for what in [one for one in missed if one not in self.told]:
            self.told.add(what)
            say(f"{what}: by parts, steps take longer ({missed[what]})")
