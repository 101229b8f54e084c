"""The micro-batch that is being computed, for the few adapters that must know which tokens are padding.

A plain module variable and not a `ContextVar`: activation checkpointing recomputes forward passes on autograd's
worker threads, which need not see the launching thread's context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.registry.errors import RecipeError

_batch: Batch | None = None
_seed: int | None = None
_counts = True
_done: float | None = None


@contextmanager
def computing(
    batch: Batch, seed: int | None = None, *, counts: bool = True, done: float | None = None
) -> Iterator[None]:
    """Make `batch` the current one, until its backward pass has ended.

    Args:
        seed: of its draws, a number for every step and micro-batch of a run.
        counts: whether it is one of the step's, and not there to go in step with other processes alone.
        done: share of the run's steps that are finished.
    """
    global _batch, _seed, _counts, _done
    before = _batch, _seed, _counts, _done
    _batch, _seed, _counts, _done = batch, seed, counts, done
    try:
        yield
    finally:
        _batch, _seed, _counts, _done = before


def share_done() -> float | None:
    """The share of the run's steps that were finished before the one that is computed; None outside of a step."""
    return _done


def current_seed() -> int | None:
    """The seed of the draws of the micro-batch that is being computed; None in evaluation and calibration."""
    return _seed


def current_batch() -> Batch | None:
    """The micro-batch that is being computed; None in evaluation and generation."""
    return _batch


def not_all_tokens(site: str) -> RecipeError:
    """The refusal of a site that is given some tokens of the micro-batch, whose documents nobody then knows."""
    return RecipeError(
        f"{site} is given some tokens of the batch, and not all; exclude it", "adapter.exclude"
    )


def recomputing() -> bool:
    """Whether this forward pass was made before, and is made again in the backward pass for its activations."""
    return torch._C._current_graph_task_id() != -1


def is_first_pass() -> bool:
    """Whether what is counted in this forward pass counts: it is not made again, and is one of the step's."""
    return _counts and not recomputing()


def real_tokens(x: Tensor) -> Tensor | None:
    """Whether each token of `x` (..., d) is real and not padding, (...) bool on its device; None where unknown."""
    if _batch is None or _batch.input_ids.numel() != x.shape[:-1].numel():
        return None
    mask = torch.zeros(_batch.input_ids.shape, dtype=torch.bool)
    for row, start, end in _batch.documents:
        mask[row, start:end] = True
    return mask.to(x.device, non_blocking=True).view(x.shape[:-1])
