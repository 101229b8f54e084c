"""Squared gradients of micro-batches: their own statements."""

from __future__ import annotations

import torch

from lrft.core.stages import Tokens
from lrft.methods.signals.batch_fisher import BatchFisher


def test_micro_batches_weigh_by_their_targets():
    """Gradients 2 and 3 of micro-batches with 1 and 4 targets: (1 * 4 + 4 * 9) / 5."""
    fisher = BatchFisher()
    for gradient, targets in ((2.0, 1), (3.0, 4)):
        x, dy = torch.zeros(6, 1), torch.zeros(6, 1)
        x[0], dy[0] = 1.0, gradient
        fisher.update(x, dy, Tokens(torch.arange(6), torch.arange(targets)))
    assert fisher.result().item() == 8.0


def test_without_weights_micro_batches_count_alike():
    """Gradients 2 and 3 of micro-batches with 1 and 4 targets: (4 + 9) / 2."""
    fisher = BatchFisher(weighed=False)
    for gradient, targets in ((2.0, 1), (3.0, 4)):
        x, dy = torch.zeros(6, 1), torch.zeros(6, 1)
        x[0], dy[0] = 1.0, gradient
        fisher.update(x, dy, Tokens(torch.arange(6), torch.arange(targets)))
    assert fisher.result().item() == 6.5


def test_it_squares_after_the_mean_over_the_micro_batch():
    x, dy = torch.ones(2, 1), torch.tensor([[1.0], [-1.0]])
    fisher = BatchFisher()
    fisher.update(x, dy, Tokens(torch.arange(2), torch.arange(2)))
    assert fisher.result().item() == 0.0
