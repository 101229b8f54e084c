"""RIFF's own statements: the equation on numbers that are known, what a rephrasing is worth, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lrft.core.batch import Sampled
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.methods.objectives.riff import z_scores
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.test_grpo import ROWS, answers, run_of
from tests.methods.objectives.told import Table, answer, drawn, objective

SCORES = [0.5, -0.5, 1.5, -1.5]


def batch_of(sampled=None):
    documents = [Encoded(x + y, [False] * len(x) + [True] * len(y)) for x, y in answers()]
    return replace(collate([[one] for one in documents], 0, None, [[0], [1]]), sampled=sampled)


def of_answers(table):
    """Log-probability of each answer, from a table of log-probabilities (token, token before)."""
    return torch.stack([answer(table, x, y).sum() for x, y in answers()])


def test_loss_gradient_and_divergence_are_those_of_the_equation():
    beta, model = 0.3, Table(drawn(0), drawn(1))
    reference = of_answers(torch.tensor(drawn(0)).log().mT)
    logits = torch.tensor(drawn(1)).log().mT.clone().requires_grad_(True)
    logprobs = of_answers(logits.log_softmax(0))
    of_rows = (logprobs + torch.tensor(SCORES)).view(2, 2)
    marginal = -of_rows.exp().sum(1).log().sum()
    apart = (logprobs - reference).detach()
    expected = marginal + beta * ((apart + 1) * logprobs).view(2, 2).mean(1).sum()
    expected.backward()
    run = run_of()
    loss = objective("riff", beta=beta)(model, batch_of(Sampled(torch.tensor(SCORES))), run)
    loss.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad, logits.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(run.metrics["kl"], apart.mean(), rtol=1e-4, atol=1e-5)
    assert run.metrics["rephrasings"] == 4


def test_one_rephrasing_of_no_merit_is_cross_entropy():
    rows = [([0, 1], [2, 3, 1])]
    documents = [Encoded(x + y, [False] * len(x) + [True] * len(y)) for x, y in rows]
    batch = replace(collate([documents], 0, None, [[0]]), sampled=Sampled(torch.zeros(1)))
    model = Table(drawn(0), drawn(1))
    loss = objective("riff", beta=0.0)(model, batch)
    torch.testing.assert_close(loss, objective("cross_entropy")(model, batch))


def test_rewards_are_normalized_within_a_group_and_a_baseline_changes_nothing():
    rewards = torch.tensor([[-1.0, -2.0, -6.0], [-3.0, -3.0, -3.0]], dtype=torch.float64)
    z = z_scores(rewards)
    torch.testing.assert_close(z[0], (rewards[0] + 3) / 7**0.5)  # a sample's deviation: (4 + 1 + 9) / 2
    assert z[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(z_scores(rewards - rewards.new_tensor([[4.0], [1.0]])), z)


def test_a_rephrasing_is_worth_what_the_base_gives_to_the_answer_beside_it():
    model = Table(drawn(0), drawn(1))
    worth = objective("riff").worth(model, batch_of())
    torch.testing.assert_close(worth, of_answers(torch.tensor(drawn(0)).log().mT), rtol=1e-4, atol=1e-5)


def test_rows_that_nobody_rephrased_are_refused_in_training():
    with pytest.raises(DataError, match="rephrasings that are drawn"):
        objective("riff")(Table(drawn(0), drawn(1)), batch_of(), run_of())
    assert len(ROWS) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.column=sentence", r"ask does not hold \{sentence\}"),
        ("objective.updates=2", "what the model draws now; write 1"),
        ("train.packing=true", "later than rows are packed"),
    ],
)
def test_what_it_cannot_work_with_is_refused_in_the_recipe(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/riff", [override])
