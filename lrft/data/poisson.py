"""Steps whose rows are drawn one by one, each with the same probability: what the accounting of privacy assumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lrft.core.privacy import Secret
from lrft.data.encoded import Encoded
from lrft.data.steps import StepBatches, TrainData


class PoissonData(TrainData):
    """The training rows, of which every step has each with probability q = `expected` / rows, whatever it had before.

    A step has `expected` rows on average, sometimes none; an epoch is rows / `expected` steps, in which a row is seen
    once on average. Every row is a micro-batch of its own, so that its gradient is.

    Args:
        expected: rows of a step on average; with no more rows than that every step has all.
        secret: the draws follow from it, from `seed` and from the step.

    Raises:
        DataError: as `TrainData`.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        *,
        expected: int,
        secret: Secret,
        max_length: int,
        seed: int,
        pad_id: int,
    ) -> None:
        super().__init__(
            encoded,
            batch_size=1,
            accumulation=expected,
            max_length=max_length,
            packing=False,
            seed=seed,
            pad_id=pad_id,
        )
        self.expected, self.secret = min(expected, len(self.usable)), secret
        self.group = self.expected

    @property
    def rate(self) -> float:
        """With what probability each row is in a step."""
        return self.expected / len(self.usable)

    def chosen(self, step: int) -> list[int]:
        """The rows of a step, rising."""
        drawn = self.secret.generator("rows", self.seed, step)
        hit = torch.rand(len(self.usable), generator=drawn, dtype=torch.float64) < self.rate
        return [self.usable[place] for place in hit.nonzero()[:, 0].tolist()]

    def at(self, step: int) -> StepBatches:
        rows = self.chosen(step)
        return StepBatches(
            micro_batches=[self._collate([[index]]) for index in rows],
            micro_batch_count=len(rows),
            targets=sum(self.targets[index] for index in rows),
            tokens=sum(self.lengths[index] for index in rows),
            examples=len(rows),
            epoch=(step + 1) / math.ceil(len(self.usable) / self.expected),
        )
