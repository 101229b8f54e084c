"""Queries told from passages: which passages are a query's negatives, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

Texts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Told:
    """What is known of every query.

    Attributes:
        losses: (queries,) float32, of the device of the embeddings.
        found: (queries,) bool, whether the query's positive passage is more similar to it than every negative.
        negatives: (queries,) int64 on the host, how many passages it is told from.
    """

    losses: Tensor
    found: Tensor
    negatives: Tensor


def info_nce(embedded: Tensor, texts: Texts, temperature: float) -> Told:
    """-log softmax of the similarity with a query's positive passage, over that passage and its negatives.

    Args:
        embedded: (N, d) float32, unit vectors: of every row its query, its positive passage, its hard negatives.
        texts: of every row a number for each of these, the same for equal texts.
    """
    starts = [0, *accumulate(map(len, texts))][:-1]
    passages = [start + k for start, row in zip(starts, texts, strict=True) for k in range(1, len(row))]
    of = {place: column for column, place in enumerate(passages)}
    own = torch.tensor([of[start + 1] for start in starts])
    negative = _negatives(texts, own)
    device = embedded.device
    similarity = (
        embedded[torch.tensor(starts, device=device)] @ embedded[torch.tensor(passages, device=device)].T
    )
    wanted = similarity.gather(1, own.to(device)[:, None])
    others = similarity.masked_fill(~negative.to(device), -torch.inf)
    both = torch.cat([wanted, others], dim=1) / temperature
    return Told(
        both.logsumexp(1) - both[:, 0], wanted[:, 0].detach() > others.detach().amax(1), negative.sum(1)
    )


def _negatives(texts: Texts, own: Tensor) -> Tensor:
    """Whether each passage is a negative of each query, (queries, passages) bool: it is no positive of an equal one."""
    queries = torch.tensor([row[0] for row in texts])
    passages = torch.tensor([key for row in texts for key in row[1:]])
    wanted = passages[own][:, None] == passages
    equal = queries[:, None] == queries
    if int(equal.sum()) > len(queries):
        wanted = (equal.float() @ wanted.float()) > 0
    return ~wanted
