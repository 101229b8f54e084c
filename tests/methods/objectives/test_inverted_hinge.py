"""The inverted hinge's own statements: its numbers and derivatives, two sets in one loss, no logits kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.core.team import ALONE
from lrft.methods.objectives.inverted_hinge import inverted_hinge
from lrft.ops.loss import Head
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.told import Table, answer, batch_of, drawn, judged, objective

ROWS = [([0, 1], [2, 3, 1], True), ([2], [1, 1], False), ([3, 3], [2], True), ([1], [0, 2, 2, 3], False)]


def on_logits(logits, targets):
    """The loss on logits themselves: a head that is the identity."""
    size = logits.shape[1]
    head = nn.Linear(size, size, bias=False).requires_grad_(False)
    head.weight.copy_(torch.eye(size))
    return inverted_hinge(logits, Head(head), targets)


def test_numbers_worked_out_by_hand():
    for p, expected in (
        ([0.5, 0.25, 0.25], 1.25),
        ([0.25, 0.5, 0.25], 0.75),
        ([0.0, 1.0, 0.0], 0.0),
        ([1.0, 0, 0], 2.0),
    ):
        found = on_logits(torch.tensor([p]).clamp(min=1e-12).log(), torch.tensor([0]))
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_derivatives_are_those_of_the_paper():
    """Of the target's logit p_t (1 - p_t + p_r), of the runner-up's -p_r (1 - p_r + p_t), of others p_v (p_r - p_t)."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    targets = torch.tensor([0, 3, 6, 2, 2])
    on_logits(logits, targets).backward()
    for line, p, target in zip(logits.grad, logits.detach().softmax(-1), targets, strict=True):
        second = int(p.index_fill(0, target, -1).argmax())
        expected = p * (p[second] - p[target])
        expected[target] = p[target] * (1 - p[target] + p[second])
        expected[second] = -p[second] * (1 - p[second] + p[target])
        torch.testing.assert_close(line, expected, rtol=1e-4, atol=1e-6)


def test_of_equal_runners_up_the_first_has_the_gradient_as_in_the_authors_code():
    ours, theirs = (torch.tensor([[0.0, 1, 1, 1], [2, 2, 2, 2]]).requires_grad_(True) for _ in range(2))
    targets = torch.tensor([2, 0])
    on_logits(ours, targets).backward()
    (2 * hinge_of_the_authors(theirs, targets)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad[1, 1] < 0 < ours.grad[1, 0] and ours.grad[1, 2] == ours.grad[1, 3] == 0


def test_loss_and_gradient_are_those_that_the_authors_code_gives():
    """Figures of the hinge of their trainer, run once on these logits in float64."""
    k = torch.arange(35, dtype=torch.float64)
    logits = (2 * torch.sin(3.0 + 1.7 * k + 0.3 * k**1.5)).reshape(5, 7).float().requires_grad_(True)
    loss = on_logits(logits, torch.tensor([0, 3, 6, 2, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(3.7714881993587244, rel=1e-5)
    expected = [
        0.1396711705,
        0.0036599295,
        -0.2874188683,
        0.0156648586,
        0.0121682960,
        0.1124983824,
        0.0037562327,
    ]
    torch.testing.assert_close(logits.grad[0], torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("retain", [1.0, 0.3])
def test_loss_gradient_and_records_are_those_of_both_sets(retain):
    policy = drawn(1)
    model, run = Table(drawn(0), policy), SimpleNamespace(metrics={})
    run.record = lambda **found: run.metrics.update(found)
    loss = objective("inverted_hinge", retain=retain)(model, batch_of(*(judged(*row) for row in ROWS)), run)
    loss.backward()
    logits = torch.tensor(policy).log().mT.clone().requires_grad_(True)
    table, forget, kept = logits.log_softmax(0), [], []
    for prompt, tokens, wanted in ROWS:
        if wanted:
            kept += list(-answer(table, prompt, tokens))
            continue
        for token, last in zip(tokens, [prompt[-1], *tokens[:-1]], strict=True):
            p = table[:, last].exp()
            forget.append(1 + p[token] - max(p[v] for v in range(4) if v != token))
    expected = sum(forget) / len(forget) + retain * sum(kept) / len(kept)
    expected.backward()
    tokens = len(forget) + len(kept)  # the loop divides by these
    torch.testing.assert_close(loss / tokens, expected)
    model.logits.grad /= tokens
    torch.testing.assert_close(model.logits.grad, logits.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.metrics["forget_loss"], torch.stack(forget).mean().detach())
    torch.testing.assert_close(run.metrics["retain_loss"], torch.stack(kept).mean().detach())


class Learner(nn.Module):
    """Logits that train, for each token before."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.tensor(drawn(1)).log(), freeze=False)
        identity = nn.Linear(4, 4, bias=False).requires_grad_(False)
        identity.weight.copy_(torch.eye(4))
        self.head = Head(identity)

    def hidden(self, batch):
        return self.embedding(batch.input_ids)


def hinge_of_the_authors(preds, target):
    """As their trainer has it, in the mode of Crammer and Singer with alpha 1."""
    preds = preds.softmax(1)
    hot = nn.functional.one_hot(target, preds.shape[1]).bool()
    margin = preds[hot] - preds[~hot].view(preds.shape[0], -1).max(dim=1)[0]
    return torch.clamp(1 + margin, 0).sum() / len(target)


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[1], [0, 2], [3]]])
def test_five_steps_of_adam_are_those_of_the_authors_trainer_however_they_are_cut(cut):
    """The mean hinge of the forget rows and the mean cross-entropy of the retain rows, which are as many, added."""
    theirs, ours = Learner(), Learner()
    sets = {
        wanted: (
            torch.tensor([b for p, y, w in ROWS if w is wanted for b in [p[-1], *y[:-1]]]),
            torch.tensor([t for _, y, w in ROWS if w is wanted for t in y]),
        )
        for wanted in (False, True)
    }
    made, run = (
        objective("inverted_hinge"),
        SimpleNamespace(metrics={}, record=lambda **found: None, team=ALONE),
    )
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.1) for one in (theirs, ours)]
    batches = [batch_of(*(judged(*ROWS[k]) for k in part)) for part in cut]
    step = SimpleNamespace(micro_batch_count=len(cut), targets=sum(len(one.targets) for one in batches))
    for _ in range(5):
        (before, unwanted), (after, wanted) = sets[False], sets[True]
        loss = hinge_of_the_authors(theirs.embedding(before), unwanted)
        loss = loss + nn.functional.cross_entropy(theirs.embedding(after), wanted)
        made.whole_step(run, step, lambda: ((batch, True) for batch in batches))
        found = sum(made(ours, batch, run) for batch in batches) / made.divisor(step)
        torch.testing.assert_close(found, loss)
        for one, optimizer in zip((loss, found), optimizers, strict=True):
            optimizer.zero_grad()
            one.backward()
            optimizer.step()
    torch.testing.assert_close(ours.embedding.weight, theirs.embedding.weight, rtol=1e-4, atol=1e-5)


def test_descent_lowers_what_is_to_be_forgotten_and_keeps_what_is_not():
    model = Table(drawn(0), drawn(1))
    batch = batch_of(judged([0], [1], False), judged([2], [3], True))
    optimizer = torch.optim.SGD([model.logits], lr=2.0)
    for _ in range(60):
        optimizer.zero_grad()
        objective("inverted_hinge")(model, batch).backward()
        optimizer.step()
    p = model.table.merged_weight().softmax(0).detach()
    assert p[1, 0] < 0.02 and p[3, 2] > 0.9
    assert p[:, 0].max() > 0.8  # and not the flat distribution that ascent would make


def test_logits_are_not_kept():
    hidden, head = torch.randn(700, 8, requires_grad=True), Head(nn.Linear(8, 300).requires_grad_(False))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = inverted_hinge(hidden, head, torch.randint(0, 300, (700,)), chunk=64)
    assert sum(kept) < 3 * hidden.numel()
    loss.backward()
    assert hidden.grad.any()


def test_rows_that_nobody_judged_are_refused_and_the_recipe_of_both_parts_is_one():
    with pytest.raises(DataError, match=r"inverted_hinge learns from answers .* data\.format: unpaired"):
        objective("inverted_hinge")(Table(drawn(0), drawn(1)), batch_of(judged([0], [1], None)))
    recipe = load_recipe("smollm2-forget-loku").recipe
    assert (recipe.objective.method, recipe.init.method) == ("inverted_hinge", "fila")
    with pytest.raises(RecipeError, match="gives answers that are not wanted too"):
        load_recipe("smollm2-forget-loku", ["objective=cross_entropy"])


@pytest.mark.slow
def test_the_recipe_starts_by_fila_and_scores_both_sets_each_by_itself(tiny, tmp_path):
    told = [
        f"model.name={tiny()}",
        "adapter.rank=2",
        "init.batches=2",
        "train.max_steps=4",
        "train.device=cpu",
    ]
    result = train(load_recipe("smollm2-forget-loku", told), tmp_path / "run", resume=False)
    assert result["step"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"forget_loss", "retain_loss"} <= lines[-1].keys()
    scores = evaluate(tmp_path / "run")["adapter"]["loss"].metrics
    assert len([name for name in scores if name.startswith("loss/")]) == 2
