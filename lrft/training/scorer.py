"""Scores while a run trains: which step is the best so far, and whether waiting for a better one has lasted enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.run import Run


@dataclass(frozen=True)
class Metric:
    """The score that says which step is the best.

    Attributes:
        name: as in metrics.jsonl.
        higher: whether more is better.
    """

    name: str = "eval_loss"
    higher: bool = False

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far. What is no finite number never is."""
        if not math.isfinite(value):
            return False
        return best is None or (value > best if self.higher else value < best)


@dataclass(frozen=True)
class Timed:
    """Scores that are taken together, every so many steps and at the last one.

    Attributes:
        score: gives them by name; None when it was asked to stop.
    """

    every: int
    score: Callable[[Run], dict[str, float] | None]


class Scorer(Callback):
    """Takes scores as they are due, remembers the best step, and ends a run that has not improved for long enough.

    Stands before what saves: the step at which patience ends becomes the last one, and all that is due there is scored.

    Args:
        scores: those that hold the metric come first, since they may make the step the last one.
        probe: tries the most demanding batch.
        patience: how many scores in a row may be no better than the best; None for any number.
    """

    def __init__(
        self,
        scores: Sequence[Timed],
        probe: Callable[[Run], object],
        metric: Metric | None = None,
        patience: int | None = None,
    ) -> None:
        self.scores, self.probe, self.patience = scores, probe, patience
        self.metric = metric or Metric()
        self.best: float | None = None
        self.best_step = 0
        self.since = 0  # scores that were no better than the best
        self.owed = 0  # the step whose score a signal cut short
        self.paid = False  # what was owed was taken as the run was gone on with
        self.planned = 0

    @property
    def exhausted(self) -> bool:
        """Whether as many scores as patience allows were no better."""
        return self.patience is not None and self.since >= self.patience

    def start(self, run: Run) -> None:
        """Score the longest batch once: what would not fit in memory fails now and not after hours."""
        self.planned = run.total_steps
        run.model.eval()
        self.probe(run)
        run.model.train()
        if self.owed and self.owed == run.step:
            self.take(run)
            self.paid = not self.owed
        elif self.exhausted:  # resumed after the step that was the last one
            run.total_steps = run.step

    def after_step(self, run: Run) -> None:
        if run.at_an_end or any(run.step % timed.every == 0 for timed in self.scores):
            self.take(run)

    def take(self, run: Run) -> None:
        """Score now, or owe it to the next sitting when the run was asked to stop."""
        run.model.eval()
        found = self._due(run)  # every process has to ask, whichever the signal came to
        run.model.train()
        self.owed = run.step if found is None else 0
        if found is None:
            return
        run.record(**found)
        if self.metric.name in found:
            self._judge(run, found[self.metric.name])

    def _due(self, run: Run) -> dict[str, float] | None:
        """What is to be scored after this step; None where a part of it was cut short."""
        found: dict[str, float] = {}
        for timed in self.scores:
            last = run.at_an_end or self._ends(found.get(self.metric.name))
            if last or run.step % timed.every == 0:
                taken = timed.score(run)
                if taken is None:
                    return None
                found |= taken
        return found

    def _ends(self, value: float | None) -> bool:
        """Whether this value of the metric uses up the patience."""
        if value is None or self.patience is None or self.metric.improves(value, self.best):
            return False
        return self.since + 1 >= self.patience

    def _judge(self, run: Run, value: float) -> None:
        if self.metric.improves(value, self.best):
            self.best, self.best_step, self.since = value, run.step, 0
            return
        self.since += 1
        if self.exhausted and run.step < run.total_steps:
            say(f"step {run.step}: {self._why()}")
            run.total_steps = run.step

    def finish(self, run: Run) -> None:
        if self.exhausted and run.step < self.planned:
            run.summary["stopped_early"] = self._why()

    def _why(self) -> str:
        scores = "1 score" if self.since == 1 else f"{self.since} scores"
        if self.best is None:
            return f"train.patience: {self.metric.name} was no finite number in {scores}"
        best = f"{self.best:.6g} of step {self.best_step}"
        return f"train.patience: {self.metric.name} has not improved on {best} in {scores}"

    def state_dict(self) -> StateDict:
        state = {"best": self.best, "best_step": self.best_step, "owed": self.owed}
        return state if self.patience is None else {**state, "since": self.since}

    def load_state_dict(self, state: StateDict) -> None:
        self.best, self.best_step, self.owed = state["best"], state["best_step"], state["owed"]
        self.since = state.get("since", 0)
