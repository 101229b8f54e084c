"""Which documents each optimizer step sees: a pure function of (seed, epoch, step)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

from lrft.core.batch import Batch
from lrft.data.ahead import made_ahead
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.mix import Mixture
from lrft.data.order import permutation
from lrft.data.pack import pack
from lrft.registry.errors import DataError

MicroBatch = list[list[int]]  # rows of data-set indices


@dataclass(frozen=True)
class Shape:
    """What a micro-batch is to a model that reads no token of it.

    Attributes:
        rows, length: of `Batch.input_ids`.
        documents: tokens of each.
    """

    rows: int
    length: int
    documents: tuple[int, ...]


@dataclass(frozen=True)
class StepBatches:
    """One optimizer step of one process.

    Attributes:
        micro_batches: this process's part, possibly none.
        micro_batch_count: those of the whole step, over all processes.
        targets: target tokens of the whole step, over all micro-batches and processes.
        tokens: tokens of the whole step, padding left out.
        examples: rows of the data in the whole step, however they are packed; a pair is one.
        epoch: passes over the data when the step is done.
        metrics: what else is known of the whole step before it is computed.
    """

    micro_batches: list[Batch]
    micro_batch_count: int
    targets: int
    tokens: int
    examples: int
    epoch: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def pinned(self) -> StepBatches:
        """The same step, its batches in pinned memory."""
        return replace(self, micro_batches=[batch.pinned() for batch in self.micro_batches])


class TrainData:
    """The training rows, cut into optimizer steps.

    Each epoch visits every usable row once, in an order of its own. With packing, its rows are filled to
    `max_length` tokens and shuffled; without, a row is one document, padded to the longest of its micro-batch. A pair
    counts as one document here: its two answers are always in the same row. Joined, the rows of a micro-batch come
    one after another as a single one, and nothing is padded; it holds the same examples either way. Of a mixture, an
    epoch visits the rows that the mixture says, some of them several times.
    Micro-batch j of a step belongs to process j % world. The last step of an epoch may hold fewer.

    Args:
        encoded: the rows; those dropped or without a target are left out, the others keep their index.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step and process.
        max_length: longest document, and with packing the tokens of every row.
        packing: several documents a row.
        join: the model keeps the documents of a row apart, and takes rows of any length.
        seed: of the order.
        pad_id: fills the rest of a row.
        world, rank: how many processes there are, and which one this is.
        mixture: how several sources share an epoch.
        repeats: steps one after another that take the same rows.

    Raises:
        DataError: nothing to train on, or a row longer than `max_length`.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        *,
        batch_size: int,
        accumulation: int,
        max_length: int,
        packing: bool,
        seed: int,
        pad_id: int,
        join: bool = False,
        world: int = 1,
        rank: int = 0,
        mixture: Mixture | None = None,
        repeats: int = 1,
    ) -> None:
        self.encoded = encoded
        self.batch_size = batch_size
        self.max_length = max_length
        self.packing = packing
        self.join = join
        self.seed = seed
        self.pad_id = pad_id
        self.world = world
        self.rank = rank
        self.mixture, self.repeats = mixture, repeats
        self.group = accumulation * world  # micro-batches of a step
        self.lengths = [len(row.input_ids) for row in encoded]
        self.targets = [row.targets for row in encoded]
        self.usable = [index for index, count in enumerate(self.targets) if count]
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._ends: list[int] = []  # steps finished by the end of each epoch met so far
        if not self.usable:
            raise DataError("data.train: no row has a token to learn")
        longest = max(self.lengths[index] for index in self.usable)
        if longest > max_length:
            raise DataError(
                f"train.max_length: a row has {longest} tokens, more than {max_length}; raise it or cut rows"
            )

    def steps_per_epoch(self, epoch: int) -> int:
        """Optimizer steps of one epoch; with packing they may differ by a few."""
        return self._end(epoch) - (self._end(epoch - 1) if epoch else 0)

    def total_steps(self, max_steps: int | None, epochs: float | None) -> int:
        """Length of a training: whichever of the two ends first, one epoch when neither is given.

        Half an epoch is half of that epoch's steps, rounded up.
        """
        if epochs is None:
            return self._end(0) if max_steps is None else max_steps
        whole = int(epochs)
        steps = self._end(whole - 1) if whole else 0
        if epochs > whole:
            steps += math.ceil((epochs - whole) * self.steps_per_epoch(whole))
        return steps if max_steps is None else min(max_steps, steps)

    def at(self, step: int) -> StepBatches:
        """Step `step`, counted from 0 over all epochs."""
        epoch = self._epoch_of(step)
        within = step - (self._end(epoch - 1) if epoch else 0)
        first = within // self.repeats * self.group
        whole = self._plan(epoch)[first : first + self.group]
        indices = [index for micro_batch in whole for row in micro_batch for index in row]
        return StepBatches(
            micro_batches=[self._collate(micro_batch) for micro_batch in whole[self.rank :: self.world]],
            micro_batch_count=len(whole),
            targets=sum(self.targets[index] for index in indices),
            tokens=sum(self.lengths[index] for index in indices),
            examples=len(indices),
            epoch=epoch + (within + 1) / self.steps_per_epoch(epoch),
        )

    def between(self, first: int, end: int, device: str = "cpu") -> Generator[StepBatches, None, None]:
        """The steps from `first` on, before `end`, for a model on a device of this type; to be closed in the end.

        For a GPU they are made in a background thread, in pinned memory. On a CPU the thread would take a core from
        the products, which costs a step far more than making its rows does.
        """
        if device == "cuda":
            return made_ahead(lambda step: self.at(step).pinned(), range(first, end))
        return (self.at(step) for step in range(first, end))

    def visited(self, step: int) -> list[int]:
        """The rows of the epoch that a step is of, each as often as it is visited there."""
        return [k for batch in self._plan(self._epoch_of(step)) for row in batch for k in row]

    def layout(self, epoch: int) -> list[MicroBatch]:
        """The micro-batches of an epoch, over all processes: of each its rows, of each row the data-set indices."""
        return self._plan(epoch)

    def place_of(self, index: int) -> tuple[int, int]:
        """The step, counted from 0, of a micro-batch of `layout(0)`, and its place among those of the step."""
        return divmod(index, self.group)

    def shapes(self, epoch: int) -> Iterator[Shape]:
        """The shapes of an epoch's micro-batches, over all processes."""
        for micro_batch in self.layout(epoch):
            rows, length = self._laid_out(micro_batch)
            used = [sum(self.lengths[index] for index in row) for row in rows]
            examples = (self.encoded[index] for index in chain.from_iterable(rows))
            documents = tuple(n for example in examples for n in example.parts or (len(example.input_ids),))
            yield Shape(len(rows), max(used) if length is None else length, documents)

    def _collate(self, micro_batch: MicroBatch) -> Batch:
        rows, length = self._laid_out(micro_batch)
        return collate([[self.encoded[k] for k in row] for row in rows], self.pad_id, length, rows)

    def _laid_out(self, micro_batch: MicroBatch) -> tuple[MicroBatch, int | None]:
        """The rows of the batch, and their length where it is not that of the fullest."""
        if self.join:
            return [list(chain.from_iterable(micro_batch))], None
        return micro_batch, self.max_length if self.packing else None

    def _epoch_of(self, step: int) -> int:
        epoch = 0
        while self._end(epoch) <= step:
            epoch += 1
        return epoch

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            steps = self.repeats * math.ceil(len(self._plan(len(self._ends))) / self.group)
            self._ends.append((self._ends[-1] if self._ends else 0) + steps)
        return self._ends[epoch]

    def _make_plan(self, epoch: int) -> list[MicroBatch]:
        visited = self.usable if self.mixture is None else self.mixture.visits(epoch)
        order = [visited[k] for k in permutation(len(visited), self.seed, epoch)]
        rows = [[index] for index in order]
        if self.packing:
            packed = pack([self.lengths[index] for index in order], self.max_length)
            rows = [[order[k] for k in packed[row]] for row in permutation(len(packed), self.seed, epoch)]
        return [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
