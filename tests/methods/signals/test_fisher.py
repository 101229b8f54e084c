"""Fisher information by document: its own statements."""

from __future__ import annotations

import torch

from lrft.core.stages import Tokens
from lrft.methods.signals.fisher import Fisher


def test_it_is_the_sum_of_the_documents_squared_gradients():
    torch.manual_seed(0)
    fisher, expected = Fisher(), torch.zeros(4, 6)
    for length in (3, 8, 5):
        x, dy = torch.randn(length, 6), torch.randn(length, 4)
        fisher.update(x, dy, Tokens(torch.arange(length), torch.arange(length - 1)))
        expected += (dy.mT @ x).square()
    torch.testing.assert_close(fisher.result(), expected)


def test_it_asks_for_one_document_at_a_time():
    assert Fisher.per_document
