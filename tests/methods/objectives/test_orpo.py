"""ORPO's own statements: the paper's numbers, its gradient, and odds that stay finite at both ends."""

from __future__ import annotations

import math

import pytest
import torch

from lrft.methods.objectives.orpo import log_odds
from lrft.registry.errors import DataError
from tests.methods.objectives.told import Table, answer, batch_of, drawn, objective, pair

PAIRS = [([0, 1], [2, 3, 1], [3]), ([2], [1, 1], [0, 3, 3, 2]), ([3, 3], [2], [1, 0])]


def test_a_number_worked_out_by_hand():
    """The chosen token has 1/2 and odds 1, the rejected one 1/4 and odds 1/3: their ratio is 3."""
    model = Table([0.25] * 4, [0.125, 0.5, 0.25, 0.125])
    loss = objective("orpo", weight=0.5)(model, batch_of(pair([0], [1, 1], [2])))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3), abs=1e-6)


def test_loss_and_gradient_are_those_of_the_equations():
    weight, policy = 0.3, drawn(1)
    model = Table(drawn(0), policy)
    loss = objective("orpo", weight=weight)(model, batch_of(*(pair(*one) for one in PAIRS)))
    loss.backward()
    logits = torch.tensor(policy).double().log().mT.clone().requires_grad_(True)
    table, expected = logits.log_softmax(0), 0.0
    for prompt, chosen, rejected in PAIRS:
        likely, other = (answer(table, prompt, one).mean().exp() for one in (chosen, rejected))
        ratio = (likely / (1 - likely)) / (other / (1 - other))
        expected = expected - likely.log() - weight * torch.sigmoid(ratio.log()).log()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-4, atol=1e-6)


def test_without_weight_it_is_the_supervised_loss_of_the_chosen_answers():
    model, batch = Table(drawn(0), drawn(1)), batch_of(*(pair(*one) for one in PAIRS))
    table = torch.tensor(drawn(1)).log().mT
    expected = -sum(answer(table, prompt, chosen).mean() for prompt, chosen, _ in PAIRS)
    torch.testing.assert_close(objective("orpo", weight=0)(model, batch).detach(), expected)


def test_odds_and_their_gradients_are_exact_near_0_and_near_1_and_finite_at_1():
    given = torch.tensor([-60.0, -5.0, -0.7, -0.69, -1e-3, -1e-5])
    held = given.clone().requires_grad_(True)
    log_odds(held).sum().backward()
    exact = given.double()
    torch.testing.assert_close(
        log_odds(given).double(), exact - torch.log(-torch.expm1(exact)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(held.grad.double(), -1 / torch.expm1(exact), rtol=1e-4, atol=0)
    sure = torch.zeros(1, requires_grad=True)
    log_odds(sure).sum().backward()
    assert torch.isfinite(log_odds(sure)).all() and sure.grad.item() == 0


def test_rows_that_are_not_pairs_are_refused():
    single = pair(*PAIRS[0]).documents()
    with pytest.raises(DataError, match=r"orpo compares two answers .* write data\.format: preference"):
        objective("orpo")(Table(drawn(0), drawn(1)), batch_of(*single))
