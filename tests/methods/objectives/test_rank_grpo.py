"""Rank-GRPO's own statements: the equation on numbers that are known, what ranks and ends are worth, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lrft.core.batch import Sampled
from lrft.core.drawing import Lines
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.registry.errors import RecipeError
from tests.each import each
from tests.methods.objectives.told import Table, drawn, objective

# One prompt, two answers; token 0 is a line break, token 1 ends an answer.
PROMPT = [3]
ANSWERS = ([2, 0, 3, 1], [2, 2, 0, 3, 0, 2])
LINES = ([0, 0, 1, 1], [0, 0, 0, 1, 1, 2])
RANKS = 2
BETA = 0.3


def batch_of(sampled=None):
    documents = [
        Encoded(PROMPT + y, [False] * len(PROMPT) + [True] * len(y)) for y in (list(one) for one in ANSWERS)
    ]
    return replace(collate([[one] for one in documents], 0, None, [[0]]), sampled=sampled)


def lines():
    stops = [token == 1 for answer in ANSWERS for token in answer]
    return Lines(torch.tensor([line for of in LINES for line in of]), torch.tensor(stops))


def judged(rewards, **settings):
    made = objective("rank_grpo", group=2, ranks=RANKS, **settings)
    return made.judge(Table(drawn(0), drawn(1)), batch_of(), torch.tensor(rewards).double(), lines())


def logprobs_of(table):
    """Of every token of the answers, from [before][token]."""
    return [
        [table[b][t] for b, t in zip([PROMPT[-1], *answer[:-1]], answer, strict=True)] for answer in ANSWERS
    ]


def test_an_item_is_compared_with_those_of_others_at_its_rank_and_its_end_is_worth_nothing():
    """At rank 0 the rewards are 1 and 0, at rank 1 both 1: only rank 0 teaches."""
    found = judged([[[1.0, 1.0], [0.0, 1.0]]], scale="none", length_reward=0.0)
    assert found.advantages.tolist() == [0.5, 0.5, 0, 0, -0.5, -0.5, -0.5, 0, 0, 0]
    found = judged([[[0.0, 3.0], [0.0, 1.0]]], length_reward=0.0)
    spread = 1 / 2**0.5  # of a half above and below, over G - 1
    expected = [0, 0, spread, 0, 0, 0, 0, -spread, -spread, 0]
    torch.testing.assert_close(found.advantages, torch.tensor(expected), rtol=1e-5, atol=0)


def test_ending_on_the_last_rank_is_worth_something_and_going_on_or_ending_before_costs_it():
    alike = [[[0.0, 0.0], [0.0, 0.0]]]
    assert judged(alike).advantages.tolist() == pytest.approx([0, 0, 0, 0.1, 0, 0, 0, 0, 0, -0.1])
    made = objective("rank_grpo", group=2, ranks=3, length_reward=0.5)
    rewards = torch.zeros(1, 2, 3).double()
    early = made.judge(Table(drawn(0), drawn(1)), batch_of(), rewards, lines())
    assert early.advantages.tolist() == [0, 0, 0, -0.5, 0, 0, 0, 0, 0, 0]


def test_the_parts_are_the_items_and_what_follows_the_last_rank_is_one_more():
    found = judged([[[1.0, 0.0], [0.0, 1.0]]])
    assert found.parts.tolist() == [0, 0, 1, 1, 3, 3, 3, 4, 4, 5]


@each(("average", "seeds"), [("answer", (0, 1, 5)), ("longest", (1, 2, 3)), ("tokens", (4, 0, 2))])
def test_loss_and_gradient_are_those_of_the_equation(average, seeds):
    reference, _, old = (torch.tensor(drawn(seed)).log() for seed in seeds)
    model = Table(drawn(seeds[0]), drawn(seeds[1]))
    gains = [[0.5, 0.5, -1.0, 0.1], [2.0, 2.0, 2.0, -0.7, -0.7, -0.1]]
    logits = torch.tensor(drawn(seeds[1])).log().clone().requires_grad_(True)
    policy = logits.log_softmax(-1)
    total = 0.0
    for of, now, before, base, gain in zip(
        LINES, logprobs_of(policy), logprobs_of(old), logprobs_of(reference), gains, strict=True
    ):
        of_answer = 0.0
        for place, line in enumerate(of):
            item = [k for k, one in enumerate(of) if one == line]
            ratio = (sum(now[k] - before[k] for k in item) / len(item)).exp()
            held = ratio.clamp(1 - 0.06, 1 + 0.08)
            apart = base[place] - now[place]
            of_clip = torch.minimum(ratio * gain[place], held * gain[place])
            of_answer = of_answer + of_clip - BETA * (apart.exp() - apart - 1)
        total = total - of_answer / {"answer": len(of), "longest": 16, "tokens": 1}[average]
    total.backward()
    known = torch.tensor([one for answer in logprobs_of(old) for one in answer])
    parts = torch.tensor([0, 0, 1, 1, 3, 3, 3, 4, 4, 5])
    sampled = Sampled(torch.tensor([one for gain in gains for one in gain]), known, parts)
    made = objective("rank_grpo", ranks=RANKS, beta=BETA, average=average, max_new_tokens=16)
    loss = made(model, batch_of(sampled))
    loss.backward()
    torch.testing.assert_close(loss, total.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad, logits.grad.mT, rtol=1e-3, atol=1e-5)


def test_with_a_token_an_item_it_is_grpo():
    settings = {"beta": BETA, "epsilon": 0.2, "epsilon_high": 0.3, "average": "tokens"}
    known = torch.tensor([one for answer in logprobs_of(torch.tensor(drawn(7)).log()) for one in answer])
    of_tokens = Sampled(torch.tensor([0.5] * 4 + [-2.0] * 6), known, torch.arange(10))
    of_answers = Sampled(torch.tensor([0.5, -2.0]), known)
    gradients = []
    for name, sampled in (("rank_grpo", of_tokens), ("grpo", of_answers)):
        model = Table(drawn(2), drawn(3))
        loss = objective(name, **settings)(model, batch_of(sampled))
        loss.backward()
        gradients.append((loss.detach(), model.logits.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_rewards_of_whole_answers_are_refused():
    with pytest.raises(RecipeError, match="length is of a whole answer, and rank_grpo rewards each item"):
        objective("rank_grpo", rewards=["listed", "length"]).rewards()
    assert [one.name for one in objective("rank_grpo", rewards=["listed", "format"]).rewards()] == [
        "listed",
        "format",
    ]
