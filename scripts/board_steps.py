"""Steps of two recipes in turn, in one process: the whole loop of each, with everything that it does between steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from lrft.api.training.begin import begin, rows_of
from lrft.build.job import Job
from lrft.data.steps import StepBatches
from lrft.recipe.schema import Recipe
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.loop import train_steps


class Stepped:
    """A training that makes a step when asked to. It runs in a thread that waits wherever the loop takes its rows."""

    def __init__(self, name: str, recipe: Recipe, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.job = _job(recipe, folder)
        self.asked, self.made = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.left = self.over = False
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()
        self._wait()

    def step(self, _: object) -> float:
        """One step; its loss.

        Raises:
            StopIteration: all steps were made.
        """
        if self.over:
            raise StopIteration(f"{self.name}: no step is left")
        self.asked.release()
        self._wait()
        return float(self.job.run.metrics["loss"])

    def leave(self) -> None:
        """Make no more steps and end the thread."""
        self.left = True
        self.asked.release()
        self.thread.join()
        for callback in self.job.run.callbacks:
            callback.close()

    def _wait(self) -> None:
        self.made.acquire()
        if self.error is not None:
            raise self.error

    def _train(self) -> None:
        try:
            train_steps(self.job.run, self._when_asked(), self.job.objective)
        except BaseException as error:  # given to whoever asked for the step
            self.error = error
        self.over = True
        self.made.release()

    def _when_asked(self) -> Iterator[StepBatches]:
        steps = self.job.steps()
        try:
            for batches in steps:
                self.made.release()  # the step before is over
                self.asked.acquire()
                if self.left:
                    return
                yield batches
        finally:
            steps.close()


def _job(recipe: Recipe, folder: Path) -> Job:
    accelerator = make_accelerator(recipe.train.device, recipe.model.dtype)
    place = RunFolder(folder)
    text = rows_of(place, recipe, accelerator, False)
    return begin(place, recipe, text, None, accelerator, False)[0]
