"""One micro-batch, as the model and the objectives see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Sampled:
    """What is known of answers that the model drew itself, beside their tokens.

    Attributes:
        advantages: (documents,) float32, how much better each is than others to the same prompt; with `parts` (N,), of
            every target.
        logprobs: (N,) float32, the log-probability of every target as it was drawn; None where no weight moved since.
        parts: (N,) int64, which part of the batch's answers every target is in, where each is judged by itself; None
            where an answer is judged as a whole.
    """

    advantages: Tensor
    logprobs: Tensor | None = None
    parts: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Sampled:
        """The same with every tensor changed."""
        logprobs = None if self.logprobs is None else change(self.logprobs)
        return Sampled(change(self.advantages), logprobs, None if self.parts is None else change(self.parts))


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens; a row holds one document, or several packed ones that do not see each other.

    Attributes:
        input_ids: (B, L) int64, padded on the right.
        position_ids: (B, L) int64, starting again at 0 with every document, the padding counting as one.
        documents: (row, start, end) of every document, padding excluded.
        supervised: (N,) int64, flat indices into B * L of the positions whose next token is a target.
        targets: (N,) int64, the token ids to predict there.
        examples: data-set indices of the rows of data, in the order of `documents`; in data of pairs each has two
            documents, the chosen answer first.
        labels: (N,) float32, what each document as a whole is to be given, of data with labels: numbers of classes, or
            numbers. Its `supervised` position is then its last token, and its target 0 says nothing. Of scored `pairs`
            the first of each two is the margin by which it is to be the better one, the other 0.
        wanted: of each document whether its answer is one to give, in data that judges answers; else empty. Of rows
            that ask whether their answer is right, of which each has two documents, once for both.
        sampled: of answers that the model drew, as many to each row; the documents of a row are then its answers.
        features: of each document what `data.features` names (`lrft.core.features`); empty where that is nothing.
        texts: of each example whose texts are embedded, a number for every document, equal where tokens are: the query,
            its positive passage, its hard negatives. `supervised` has the last token of each. Empty in other data.

    `supervised` and `targets` are built on the host, so that selecting them never waits for the device.
    """

    input_ids: Tensor
    position_ids: Tensor
    documents: tuple[tuple[int, int, int], ...]
    supervised: Tensor
    targets: Tensor
    examples: tuple[int, ...] = ()
    labels: Tensor | None = None
    features: tuple[tuple[str, ...], ...] = ()
    wanted: tuple[bool, ...] = ()
    sampled: Sampled | None = None
    texts: tuple[tuple[int, ...], ...] = ()

    @property
    def tokens(self) -> int:
        """Real tokens, padding left out."""
        return sum(end - start for _, start, end in self.documents)

    @property
    def pairs(self) -> bool:
        """Whether two documents with labels are a row each, of which the first is to be scored higher."""
        return self.labels is not None and len(self.documents) == 2 * len(self.examples)

    def supervised_rows(self, hidden: Tensor) -> Tensor:
        """The supervised positions of hidden states, (B, L, d) or (B * L, d) -> (N, d)."""
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.supervised)

    def document_sums(self, values: Tensor) -> Tensor:
        """Sum over the targets of each document, (N,) -> (documents,)."""
        bounds = self._bounds().to(values.device, non_blocking=True)
        # A masked sum and not an index_add, whose order of additions a GPU does not keep.
        inside = (self.supervised >= bounds[:, :1]) & (self.supervised < bounds[:, 1:])
        return torch.where(inside, values, 0).sum(1)

    def targets_where(self, wanted: bool) -> Tensor:
        """Places among the targets of those in documents that are wanted, or that are not, (k,) int64."""
        bounds = self._bounds()[[one is wanted for one in self.wanted]].to(self.supervised.device)
        inside = (self.supervised >= bounds[:, :1]) & (self.supervised < bounds[:, 1:])
        return inside.any(0).nonzero()[:, 0]

    def _bounds(self) -> Tensor:
        """First and past-the-last flat index of every document, (documents, 2) on the host."""
        length = self.input_ids.shape[1]
        edges = [(row * length + start, row * length + end) for row, start, end in self.documents]
        return torch.tensor(edges, dtype=torch.int64)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; from pinned memory the copy waits for nothing."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory of the host that a GPU copies from by itself; needs one."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            supervised=change(self.supervised),
            targets=change(self.targets),
            labels=None if self.labels is None else change(self.labels),
            sampled=None if self.sampled is None else self.sampled.changed(change),
        )
