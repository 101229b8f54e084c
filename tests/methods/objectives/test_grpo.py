"""GRPO's own statements: the equation on numbers that are known, what a group is worth, the clip, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lrft.core.batch import Sampled
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.methods.objectives._group_relative import advantages
from lrft.methods.objectives.grpo import unlikely_worth_more
from lrft.ops.loss import Head
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from tests.each import each
from tests.methods.objectives.told import Table, drawn, objective

# Prompts with two answers each, as (prompt, answers); the last token of an answer is what ended it, or its limit.
ROWS = [([0, 1], ([2, 3, 1], [1])), ([3], ([1, 1, 0, 2], [2, 2]))]
GAINS = [0.5, -0.5, 2.0, -1.0]
BETA = 0.3


def answers():
    return [(prompt, answer) for prompt, several in ROWS for answer in several]


def batch_of(joined=False, old=None):
    documents = [Encoded(x + y, [False] * len(x) + [True] * len(y)) for x, y in answers()]
    lines = [documents] if joined else [[one] for one in documents]
    return replace(collate(lines, 0, None, [[0], [1]]), sampled=Sampled(torch.tensor(GAINS), old))


def run_of():
    run = SimpleNamespace(metrics={})
    run.record = lambda **found: run.metrics.update(found)
    return run


def tables(seeds):
    """A model of two tables, and what each of them gives to a token after another."""
    reference, policy = map(drawn, seeds)
    return Table(reference, policy), torch.tensor(reference).log(), torch.tensor(policy).log()


def direct(policy, reference, old, average, epsilon=(0.2, 0.2), longest=16):
    """The loss, token by token, as the paper writes it; `old` and the others are [before][token]."""
    total, kl, clipped, count = 0.0, 0.0, 0, 0
    for (prompt, answer), gain in zip(answers(), GAINS, strict=True):
        of_answer = 0.0
        for before, token in zip([prompt[-1], *answer[:-1]], answer, strict=True):
            ratio = (policy[before][token] - old[before][token]).exp()
            held = min(max(ratio.item(), 1 - epsilon[0]), 1 + epsilon[1])
            of_clip = min(ratio.item() * gain, held * gain)
            term = held * gain if of_clip < ratio.item() * gain else ratio * gain
            clipped += of_clip < ratio.item() * gain
            apart = reference[before][token] - policy[before][token]
            kl = kl + (apart.exp() - apart - 1)
            of_answer = of_answer + term - BETA * (apart.exp() - apart - 1)
            count += 1
        total = total - of_answer / {"answer": len(answer), "longest": longest, "tokens": 1}[average]
    return total, kl / count, clipped / count


@each(
    ("average", "seeds", "joined"),
    [("answer", (0, 1, 5), False), ("longest", (1, 2, 3), True), ("tokens", (4, 0, 2), False)],
)
def test_loss_gradient_and_records_are_those_of_the_equation(average, seeds, joined):
    model, reference, _ = tables(seeds[:2])
    old = torch.tensor(drawn(seeds[2])).log()
    logits = torch.tensor(drawn(seeds[1])).log().clone().requires_grad_(True)
    expected, kl, clipped = direct(logits.log_softmax(-1), reference, old, average)
    expected.backward()
    known = torch.tensor([old[b][t] for x, y in answers() for b, t in zip([x[-1], *y[:-1]], y, strict=True)])
    run = run_of()
    loss = objective("grpo", beta=BETA, average=average, max_new_tokens=16)(
        model, batch_of(joined, known), run
    )
    loss.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad, logits.grad.mT, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(run.metrics["kl"], kl.detach(), rtol=1e-4, atol=1e-5)
    assert 0 < clipped < 1
    assert float(run.metrics["clipped"]) == pytest.approx(clipped)


def test_in_the_first_step_the_ratio_is_one_and_the_gradient_that_of_the_policy():
    model, _, policy = tables((3, 3))
    loss = objective("grpo", beta=BETA)(model, batch_of(), run_of())
    assert loss.item() == pytest.approx(
        -sum(GAINS), abs=1e-5
    )  # and nothing apart from the reference at step 0
    loss.backward()
    logits = policy.clone().requires_grad_(True)
    logprobs = logits.log_softmax(-1)
    total = sum(
        gain / len(y) * sum(logprobs[b][t] for b, t in zip([x[-1], *y[:-1]], y, strict=True))
        for (x, y), gain in zip(answers(), GAINS, strict=True)
    )
    (-total).backward()
    torch.testing.assert_close(model.logits.grad, logits.grad.mT, rtol=1e-4, atol=1e-5)


def test_the_clip_holds_what_goes_on_in_the_direction_of_its_gain_and_nothing_else():
    made = objective("grpo", epsilon=0.2, epsilon_high=0.5)
    ratio = torch.tensor([0.7, 0.7, 1.3, 1.6, 1.6, 1.0])
    gain = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 2.0])
    value, clipped = made._clipped(ratio, gain)
    torch.testing.assert_close(value, torch.tensor([0.7, -0.8, 1.3, 1.5, -1.6, 2.0]))
    assert clipped.tolist() == [False, True, False, True, False, False]


def test_the_estimator_of_the_divergence_is_never_negative_and_right_on_average():
    """Over all tokens, weighed by the policy: sum of p (ref/p - log(ref/p) - 1) = KL(p, ref)."""
    p, ref = torch.tensor(drawn(1)[0]), torch.tensor(drawn(2)[0])
    apart = ref.log() - p.log()
    found = apart.exp() - apart - 1
    assert bool((found >= 0).all())
    torch.testing.assert_close((p * found).sum(), (p * (p / ref).log()).sum())


def test_advantages_compare_within_a_group_alone():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1] * 4, [3.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    plain = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [1.0, -1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(advantages(rewards, scaled=False), plain)
    spread = torch.tensor([[math.sqrt(1 / 3)], [1.0], [math.sqrt(2 / 3)]]).double()
    torch.testing.assert_close(advantages(rewards, scaled=True), plain / spread, rtol=1e-5, atol=0)
    assert advantages(rewards, scaled=True)[1].tolist() == [0.0] * 4


def test_of_right_answers_the_likeliest_is_worth_least():
    rewards = torch.tensor([[1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    likely = torch.tensor([[-0.1, -3.0, -1.0, -2.0]], dtype=torch.float64)
    expected = [[1 - 0.25 * 3 / 4, 1.0, 0.0, 1 - 0.25 / 4]]  # as the authors' code has it, ranks 3, 0, 2, 1
    assert unlikely_worth_more(rewards, likely, 0.25).tolist() == expected
    assert torch.equal(unlikely_worth_more(rewards, torch.zeros(1, 4).double(), 0.25), rewards)


@each(("settings", "remembers"), [({}, False), ({"updates": 2}, True), ({"unlikeliness": 0.25}, False)])
def test_judging_remembers_probabilities_where_another_step_needs_them(settings, remembers):
    model, _, policy = tables((0, 1))
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    judged = objective("grpo", group=2, **settings).judge(model, replace(batch_of(), sampled=None), rewards)
    assert (judged.logprobs is not None) == remembers
    if remembers:
        known = [policy[b][t] for x, y in answers() for b, t in zip([x[-1], *y[:-1]], y, strict=True)]
        torch.testing.assert_close(judged.logprobs, torch.stack(known), rtol=1e-4, atol=1e-5)
    assert (judged.advantages[:2].abs().sum() > 0) == ("unlikeliness" in settings)  # both were right


def test_a_temperature_divides_the_logits_of_the_ratio_and_is_refused_where_they_are_capped():
    model, _, policy = tables((0, 1))
    made = objective("grpo", updates=2, group=2, temperature=0.5)
    judged = made.judge(model, replace(batch_of(), sampled=None), torch.eye(2).double())
    warm = (policy / 0.5).log_softmax(-1)
    known = [warm[b][t] for x, y in answers() for b, t in zip([x[-1], *y[:-1]], y, strict=True)]
    torch.testing.assert_close(judged.logprobs, torch.stack(known), rtol=1e-4, atol=1e-5)
    model.head = Head(model.head.module, softcap=30.0)
    with pytest.raises(RecipeError, match="caps its logits"):
        made.judge(model, replace(batch_of(), sampled=None), torch.eye(2).double())


def test_rows_that_nobody_answered_are_refused_in_training_and_their_own_answers_measured_before():
    model, _, policy = tables((0, 1))
    bare = replace(batch_of(), sampled=None)
    with pytest.raises(DataError, match="answers that are drawn"):
        objective("grpo")(model, bare, run_of())
    expected = -sum(policy[b][t] for x, y in answers() for b, t in zip([x[-1], *y[:-1]], y, strict=True))
    torch.testing.assert_close(objective("grpo")(model, bare).detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_a_mean_over_answers_or_over_tokens():
    step = SimpleNamespace(examples=3, targets=40)
    assert objective("grpo", group=4).divisor(step) == 12
    assert objective("grpo", group=4, average="tokens").divisor(step) == 40


@each(
    ("override", "message"),
    [
        ("train.packing=true", "answers are drawn later than rows are packed; write false"),
        ("train.shard_base=true", "unequally many passes; write false"),
        ("train.stop_below=0.1", "does not say how good answers are; write null"),
        ("adapter.dropout=0.1", "a model with dropout and one without; write 0, or objective.updates: 1"),
        ("train.neftune=5.0", "a model with noise and one without"),
        ("optimizer=mezo", "mezo compares losses"),
        ("optimizer=schedule_free", "schedule_free takes gradients at other weights"),
        ("model.compile=true", "the model is not compiled"),
        ("objective.rewards=[exact_macth]", "did you mean exact_match"),
        ("objective.rewards=[]", r"must be a list of reward names .* not \[\]"),
    ],
)
def test_what_it_cannot_work_with_is_refused_in_the_recipe(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/grpo", [override])


def test_weights_of_the_base_may_train_where_nothing_is_held_to_it():
    full = ["~adapter", "trainable=full", "objective.updates=1"]
    with pytest.raises(RecipeError, match=r"no base to be held to; write 0"):
        load_recipe("smoke/grpo", full)
    load_recipe("smoke/grpo", [*full, "objective.beta=0.0"])
