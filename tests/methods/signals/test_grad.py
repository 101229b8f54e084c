"""The gradient's own statements."""

from __future__ import annotations

import torch

from lrft.core.stages import Tokens
from lrft.methods.signals.grad import Grad


def test_it_is_autograds_gradient_of_the_mean_loss():
    torch.manual_seed(0)
    x, weight = torch.randn(9, 6), torch.randn(4, 6, requires_grad=True)
    y = x @ weight.mT
    y.retain_grad()
    y.square().sum(1).mean().backward()
    grad = Grad()
    grad.update(x, y.grad, Tokens(torch.arange(9), torch.arange(8)))
    torch.testing.assert_close(grad.result(), weight.grad)


def test_micro_batches_weigh_the_same():
    x = torch.ones(2, 1)
    grad = Grad()
    for value in (1.0, 5.0):
        grad.update(x, torch.full((2, 1), value), Tokens(torch.arange(2), torch.arange(1)))
    assert grad.result().item() == 6.0
