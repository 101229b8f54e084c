"""Sources as tasks that are learnt one after the other: the rows of every step, and where each task ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from lrft.data.mix import Mixture, apportioned
from lrft.data.steps import MicroBatch, StepBatches, TrainData
from lrft.registry.errors import DataError


class TasksInTurn(TrainData):
    """The training rows of several tasks, each cut into steps by itself, all of one before the first of the next.

    An epoch of a task visits the rows that `mixture` has of its source in an epoch, and no step has rows of two tasks.
    Every task is gone through for the same number of epochs; or the steps of the run are shared out by the rows that
    the tasks have in an epoch.

    Args:
        tasks: the rows of each task.
        mixture: of all of them.
    """

    def __init__(self, tasks: Sequence[TrainData], mixture: Mixture) -> None:
        self.__dict__.update(tasks[0].__dict__)  # all of a run's settings are alike
        self.tasks, self.mixture = tasks, mixture
        self.ends: list[
            int
        ] = []  # finished steps at the end of each task, once the length of the run was asked for

    def total_steps(self, max_steps: int | None, epochs: float | None) -> int:
        """Length of the run, by which its tasks are laid out: whichever of the two ends first, as for mixed rows.

        Raises:
            DataError: a task gets no step.
        """
        lengths = [task.total_steps(None, epochs) for task in self.tasks]
        if max_steps is not None and (epochs is None or max_steps < sum(lengths)):
            assert self.mixture is not None
            lengths = apportioned(max_steps, [share.share for share in self.mixture.shares])
        for share, length in zip(self.mixture.shares if self.mixture else (), lengths, strict=True):
            if not length:
                raise DataError(
                    f"train.max_steps: of {max_steps} steps none is of task {share.name}, whose share is "
                    f"{share.share:.2g}; write more steps, or train.epochs"
                )
        self.ends = list(accumulate(lengths))
        return self.ends[-1]

    def at(self, step: int) -> StepBatches:
        """Step `step`, counted from 0 over all tasks; `epoch` counts the passes over the rows of its task."""
        task = self.task_of(step)
        return self.tasks[task].at(step - (self.ends[task - 1] if task else 0))

    def visited(self, step: int) -> list[int]:
        """The rows of the epoch that a step is of: those of its task."""
        task = self.task_of(step)
        return self.tasks[task].visited(step - (self.ends[task - 1] if task else 0))

    def task_of(self, step: int) -> int:
        """The place of the task that a step is of."""
        assert self.ends, "the length of the run was not asked for"
        return min(bisect_right(self.ends, step), len(self.ends) - 1)

    def steps_per_epoch(self, epoch: int) -> int:
        """Optimizer steps of that epoch of all tasks."""
        return sum(task.steps_per_epoch(epoch) for task in self.tasks)

    def layout(self, epoch: int) -> list[MicroBatch]:
        """The micro-batches of that epoch of all tasks, one task after the other."""
        return [micro_batch for task in self.tasks for micro_batch in task.layout(epoch)]

    def place_of(self, index: int) -> tuple[int, int]:
        """The step, counted from 0, of a micro-batch of `layout(0)`, and its place among those of the step."""
        for task, begin in zip(self.tasks, [0, *self.ends], strict=False):
            count = len(task.layout(0))
            if index < count:
                step, place = task.place_of(index)
                return begin + step, place
            index -= count
        raise IndexError(index)
