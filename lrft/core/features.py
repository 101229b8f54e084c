"""Features of documents, such as a language or a task, for adapters whose change depends on them.

A row of data has the features that `data.features` names, each as `column=value`; a `Batch` carries them document by
document, generation row by row. An adapter asks here which of them every token has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.context import current_batch, current_seed, not_all_tokens

Features = tuple[str, ...]


@dataclass(frozen=True)
class _Rows:
    """The features of every row of what passes through the model, whatever its length."""

    features: tuple[Features, ...]
    documents: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Having:
    """Which tokens have which features.

    Attributes:
        mask: (..., names) bool, on the device of the tokens; padding has none.
        present: the places of those names that some token has.
    """

    mask: Tensor
    present: tuple[int, ...]


_passing: Batch | _Rows | None = None
_last: tuple[object, Having] | None = None


@contextmanager
def passing(what: Batch | Sequence[Features]) -> Iterator[None]:
    """Say whose features the tokens have that pass through the model: a batch's, or those of each row."""
    global _passing
    before, _passing = _passing, what if isinstance(what, Batch) else _Rows(tuple(what))
    try:
        yield
    finally:
        _passing = before


def token_features(x: Tensor, names: Features, where: str, drop: float = 0.0) -> Having | None:
    """Which of `names` each token of `x` (..., d) has; None where nobody said. All sites of a pass get the same one.

    Args:
        where: the site that asks.
        drop: probability that a document loses a feature it has; drawn anew for every micro-batch that is trained on,
            from its seed, so that all sites, and a pass that is computed again, agree.

    Raises:
        RecipeError: the site does not see all tokens, so that nobody knows whose they are.
    """
    global _last
    told, shape = _passing or current_batch(), x.shape[:-1]
    if told is None:
        return None
    whole = isinstance(told, Batch)
    if (told.input_ids.numel() != shape.numel()) if isinstance(told, Batch) else _unlike(shape, told):
        raise not_all_tokens(where)
    seed = current_seed() if drop else None
    key = (told.features, told.documents, whole, names, seed, drop, x.device)
    if _last is None or _last[0] != key:
        _last = key, _having(told, names, drop, seed, x.device)
    found = _last[1]
    middle = (len(names),) if whole else (*[1] * (len(shape) - 1), len(names))
    mask = found.mask.view(*shape[: None if whole else 1], *middle)
    return Having(mask.expand(*shape, -1), found.present)


def _unlike(shape: torch.Size, told: _Rows) -> bool:
    """Whether these are not the rows, each of some tokens."""
    return len(shape) < 2 or shape[0] != len(told.features)


def _having(
    told: Batch | _Rows, names: Features, drop: float, seed: int | None, device: torch.device
) -> Having:
    """Of the tokens of a batch, one after the other, or of rows."""
    sets = told.features
    table = torch.tensor([[name in one for name in names] for one in sets], dtype=torch.bool)
    table = table.view(len(sets), len(names))
    if drop and seed is not None:
        generator = torch.Generator().manual_seed(seed)
        table &= torch.rand(table.shape, generator=generator) >= drop
    present = tuple(table.any(0).nonzero().flatten().tolist())
    if isinstance(told, Batch):
        table = _by_token(table, told)
    return Having(table.to(device, non_blocking=True), present)


def _by_token(table: Tensor, batch: Batch) -> Tensor:
    """(documents, names), or nothing where no document has a feature, to (tokens of the batch, names)."""
    rows, length = batch.input_ids.shape
    owner = torch.full((rows * length,), len(table), dtype=torch.int64)
    for number, (row, start, end) in enumerate(batch.documents[: len(table)]):
        owner[row * length + start : row * length + end] = number
    return torch.cat([table, table.new_zeros(1, table.shape[1])])[owner]
