"""Lion's own statements, the paper's algorithm by hand, and bitsandbytes' Lion."""

from __future__ import annotations

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim.lion import Lion


def make(value, **settings):
    param = torch.nn.Parameter(value.clone())
    return Lion.build([ParamInfo("p", param, "matrix")], Lion.Config(method="lion", **settings)), param


def gradients(steps=6):
    torch.manual_seed(0)
    return [torch.randn(5, 7) for _ in range(steps)]


def test_it_is_algorithm_2_of_the_paper():
    start = torch.randn(5, 7)
    optimizer, param = make(start, lr=0.01, weight_decay=0.3)
    expected, m = start.clone(), torch.zeros(5, 7)
    for g in gradients():
        param.grad = g
        optimizer.step()
        direction = torch.sign(0.9 * m + 0.1 * g)
        expected = expected - 0.01 * (direction + 0.3 * expected)
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(param.detach(), expected)


def test_every_number_moves_by_the_rate_whatever_the_size_of_its_gradient():
    optimizer, param = make(torch.zeros(5, 7), lr=0.25)
    param.grad = torch.logspace(-20, 10, 35).view(5, 7)
    optimizer.step()
    assert (param == -0.25).all()


def test_with_both_betas_0_it_is_descent_along_the_sign():
    optimizer, param = make(torch.zeros(5, 7), lr=1.0, beta1=0.0, beta2=0.0)
    total = torch.zeros(5, 7)
    for g in gradients():
        param.grad = g
        optimizer.step()
        total -= g.sign()
    assert torch.equal(param.detach(), total)


def test_its_state_is_half_of_adamws():
    optimizer, param = make(torch.zeros(5, 7))
    param.grad = torch.ones(5, 7)
    optimizer.step()
    assert sum(t.numel() * t.element_size() for t in optimizer.state[param].values()) == 4 * 35


def test_it_is_bitsandbytes_lion():
    bnb = pytest.importorskip("bitsandbytes")
    start = torch.randn(5, 7)
    optimizer, param = make(start, lr=0.01, weight_decay=0.3)
    theirs = torch.nn.Parameter(start.clone())
    other = bnb.optim.Lion([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    for g in gradients():
        param.grad, theirs.grad = g, g.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(param.detach(), theirs.detach(), atol=1e-6, rtol=1e-5)
