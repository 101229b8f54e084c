"""Batches sized by tokens, and the mode a model is scored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def token_batches(lengths: Sequence[int], batch_tokens: int, equal: bool = False) -> list[list[int]]:
    """Indices grouped so that rows x longest row stays within `batch_tokens`; one row always fits.

    The longest come first: a batch that does not fit in memory is then the first one, not the last.

    Args:
        equal: group only rows of one length, for models that padding would disturb.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Sorted, so the first row of a batch is its longest.
        longest = lengths[batches[-1][0]] if batches else 0
        full = not batches or (len(batches[-1]) + 1) * longest > batch_tokens
        if full or (equal and lengths[index] != longest):
            batches.append([])
        batches[-1].append(index)
    return batches


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode is put back afterwards.

    Not inference mode: a tensor cached by a layer during it could not take part in training afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
