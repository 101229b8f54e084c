"""Sources that take turns: every step has rows of one of them, and the next step those of the next."""

from __future__ import annotations

from collections.abc import Sequence

from lrft.data.mix import Mixture
from lrft.data.steps import MicroBatch, StepBatches, TrainData
from lrft.registry.errors import DataError


class Alternating(TrainData):
    """The training rows of several sources, each cut into steps by itself; step t is of source t modulo their number.

    A source whose rows are used up begins again, in another order, while others go on, so all get as many steps. An
    epoch of the run is over when the source with most steps has been gone through.

    Args:
        sources: the rows of each.
        mixture: of all of them.
    """

    def __init__(self, sources: Sequence[TrainData], mixture: Mixture) -> None:
        self.__dict__.update(sources[0].__dict__)  # all of a run's settings are alike
        self.sources, self.mixture = sources, mixture

    def total_steps(self, max_steps: int | None, epochs: float | None) -> int:
        """Length of the run, whichever of the two ends first: whole rounds of all sources.

        Raises:
            DataError: not every source would have a step.
        """
        count = len(self.sources)
        steps = count * max(source.total_steps(None, epochs) for source in self.sources)
        if max_steps is not None:
            steps = max_steps if epochs is None else min(max_steps, steps)
        if steps < count:
            raise DataError(
                f"train.max_steps: {steps} steps are fewer than the {count} sources of data.mix.order: alternating; "
                f"write {count} or more"
            )
        return steps

    def at(self, step: int) -> StepBatches:
        """Step `step`, counted from 0 over all sources; `epoch` counts the passes over the rows of its own."""
        return self.sources[step % len(self.sources)].at(step // len(self.sources))

    def visited(self, step: int) -> list[int]:
        """The rows of the epoch that a step is of: those of its source."""
        return self.sources[step % len(self.sources)].visited(step // len(self.sources))

    def steps_per_epoch(self, epoch: int) -> int:
        """Optimizer steps of one epoch."""
        return len(self.sources) * max(source.steps_per_epoch(epoch) for source in self.sources)

    def layout(self, epoch: int) -> list[MicroBatch]:
        """The micro-batches of that epoch of all sources, one source after the other."""
        return [micro_batch for source in self.sources for micro_batch in source.layout(epoch)]

    def place_of(self, index: int) -> tuple[int, int]:
        """The step, counted from 0, of a micro-batch of `layout(0)`, and its place among those of the step."""
        for turn, source in enumerate(self.sources):
            count = len(source.layout(0))
            if index < count:
                step, place = source.place_of(index)
                return step * len(self.sources) + turn, place
            index -= count
        raise IndexError(index)
