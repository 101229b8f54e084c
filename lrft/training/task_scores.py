"""Tasks that are learnt one after the other: all of them scored after each one, and what was forgotten."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.core.stop import sentence
from lrft.registry.errors import Interrupted

Losses = list[list[float]]
"""Of each task (column) before training (first row) and after each task, in nats per supervised token."""


class TaskScores(Callback):
    """Takes the held-out loss of every task before the first step and at the end of each task.

    Stands before what writes the step's line and saves. A score that a signal cut short is owed to the next sitting.

    Args:
        score: the loss of each task, in their order; None when it was asked to stop.
    """

    def __init__(self, score: Callable[[Run], list[float] | None]) -> None:
        self.score = score
        self.losses: Losses = []
        self.owed = 0  # the step after which a score was cut short

    def start(self, run: Run) -> None:
        """Score the model that the first task begins on, or what the last sitting owes.

        Raises:
            Interrupted: a signal cut the first score short.
        """
        if run.step:
            if self.owed == run.step:
                self._take(run)
            return
        found = self._taken(run)
        if found is None:
            number = run.stop_signal or signal.SIGINT
            raise Interrupted(number, sentence(number, "no step was made yet; add --resume to go on"))
        self.losses = [found]

    def after_step(self, run: Run) -> None:
        if run.step in run.tasks.values():
            self._take(run)

    def _take(self, run: Run) -> None:
        found = self._taken(run)
        self.owed = run.step if found is None else 0
        if found is None:
            return
        self.losses.append(found)
        run.record(**{f"task_loss/{name}": loss for name, loss in zip(run.tasks, found, strict=True)})
        if len(self.losses) > 2:
            run.record(backward_transfer=backward_transfer(self.losses))

    def _taken(self, run: Run) -> list[float] | None:
        run.model.eval()
        found = self.score(run)
        run.model.train()
        return found

    def finish(self, run: Run) -> None:
        run.summary["tasks"] = record(run.tasks, self.losses)

    def state_dict(self) -> StateDict:
        return {"losses": self.losses, "owed": self.owed}

    def load_state_dict(self, state: StateDict) -> None:
        self.losses, self.owed = state["losses"], state["owed"]


def record(tasks: Mapping[str, int], losses: Losses) -> dict[str, Any]:
    """What result.json says of a sequence of tasks."""
    names = list(tasks)
    return {
        "names": names,
        "ends": list(tasks.values()),
        "losses": losses,
        "forgetting": dict(zip(names[:-1], forgetting(losses), strict=False)),
        "backward_transfer": backward_transfer(losses),
        "forward_transfer": forward_transfer(losses),
    }


def backward_transfer(losses: Losses) -> float | None:
    """What the later tasks did to the earlier ones, on average: their loss once learnt less that of now.

    Below 0 where they are forgotten; None before there are two tasks.
    """
    (_, *after), learnt = losses, len(losses) - 1
    changes = [after[task][task] - after[-1][task] for task in range(learnt - 1)]
    return sum(changes) / len(changes) if changes else None


def forgetting(losses: Losses) -> list[float]:
    """Of every task but the last one: its loss now less the lowest that it had since it was learnt, 0 or more."""
    (_, *after), learnt = losses, len(losses) - 1
    return [after[-1][task] - min(row[task] for row in after[task:]) for task in range(learnt - 1)]


def forward_transfer(losses: Losses) -> float | None:
    """What the tasks before did to one that was not learnt yet, on average: its loss before training less that of then.

    None before there are two tasks.
    """
    learnt = len(losses) - 1
    changes = [losses[0][task] - losses[task][task] for task in range(1, learnt)]
    return sum(changes) / len(changes) if changes else None
