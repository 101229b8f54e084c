"""SimPO's own statements: the paper's numbers, answers of any length alike, and no second forward pass."""

from __future__ import annotations

import math

import pytest
import torch

from lrft.registry.errors import DataError
from tests.methods.objectives.told import Table, answer, batch_of, drawn, objective, pair

PAIRS = [([0, 1], [2, 3, 1], [3]), ([2], [1, 1], [0, 3, 3, 2]), ([3, 3], [2], [1, 0])]


def test_a_number_worked_out_by_hand():
    """The chosen token has 1/2, the rejected one 1/4, so the rewards differ by beta log 2."""
    model = Table([0.25] * 4, [0.125, 0.5, 0.25, 0.125])
    loss = objective("simpo", beta=2.0, gamma=math.log(2))(model, batch_of(pair([0], [1], [2])))
    assert loss.item() == pytest.approx(math.log(3 / 2), abs=1e-6)  # -log sigmoid(log 2)
    longer = objective("simpo", beta=2.0, gamma=math.log(2))(model, batch_of(pair([0], [1] * 5, [2] * 3)))
    assert longer.item() == pytest.approx(loss.item(), abs=1e-6)


def test_loss_and_gradient_are_those_of_the_equation():
    beta, gamma, policy = 2.5, 0.7, drawn(1)
    model = Table(drawn(0), policy)
    loss = objective("simpo", beta=beta, gamma=gamma)(model, batch_of(*(pair(*one) for one in PAIRS)))
    loss.backward()
    logits = torch.tensor(policy).log().mT.clone().requires_grad_(True)
    table, expected = logits.log_softmax(0), 0.0
    for prompt, chosen, rejected in PAIRS:
        gap = beta * (answer(table, prompt, chosen).mean() - answer(table, prompt, rejected).mean())
        expected = expected + torch.log1p(torch.exp(gamma - gap))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.logits.grad, logits.grad, rtol=1e-4, atol=1e-6)


def test_one_forward_pass_whatever_the_base_is():
    first, other = Table(drawn(0), drawn(1)), Table(drawn(2), drawn(1))
    passes = []
    first.table.register_forward_hook(lambda *_: passes.append(1))
    batch = batch_of(*(pair(*one) for one in PAIRS))
    torch.testing.assert_close(objective("simpo")(first, batch), objective("simpo")(other, batch))
    assert len(passes) == 1


def test_rows_that_are_not_pairs_are_refused():
    single = pair(*PAIRS[0]).documents()
    with pytest.raises(DataError, match=r"simpo compares two answers .* write data\.format: preference"):
        objective("simpo")(Table(drawn(0), drawn(1)), batch_of(*single))
