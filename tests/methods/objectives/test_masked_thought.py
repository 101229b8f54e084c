"""Masked Thought's own statements."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.core.batch import Batch
from lrft.ops.loss import Head
from lrft.registry.axes import OBJECTIVES

VOCABULARY = 50


class Recorder:
    """A language model of one embedding and a head, which keeps the ids it was given."""

    def __init__(self):
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = Head(nn.Linear(8, VOCABULARY, bias=False).requires_grad_(False))
        self.seen = None

    def hidden(self, batch):
        self.seen = batch.input_ids
        return self.embedding(batch.input_ids)


def batch_of(rows=40, length=30, prompt=10):
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    before = torch.arange(prompt - 1, length - 1).expand(rows, -1) + length * torch.arange(rows)[:, None]
    supervised = before.flatten()
    positions = torch.arange(length).expand(rows, -1)
    documents = tuple((row, 0, length) for row in range(rows))
    return Batch(ids, positions, documents, supervised, ids.flatten()[supervised + 1])


def run_at(step, total=100):
    return SimpleNamespace(step=step, planned_steps=total)


def objective(**settings):
    cls = OBJECTIVES.get("masked_thought")
    return cls(cls.Config(method="masked_thought", **settings))


def test_at_probability_0_it_is_cross_entropy_bit_for_bit():
    plain = OBJECTIVES.get("cross_entropy")(None)
    model, batch = Recorder(), batch_of()
    expected = plain(model, batch, run_at(50))
    assert torch.equal(objective(probability=0.0)(model, batch, run_at(50)), expected)
    assert torch.equal(objective()(model, batch, run_at(0)), expected)
    assert torch.equal(objective()(model, batch, None), expected)


@pytest.mark.parametrize("token", [None, 7])
def test_prompts_and_targets_stay_and_the_share_of_replaced_answers_is_p(token):
    model, batch = Recorder(), batch_of()
    before = batch.targets.clone()
    objective(probability=0.4, token=token)(model, batch, run_at(90))
    changed = model.seen != batch.input_ids
    assert not changed[:, :10].any()
    assert torch.equal(batch.targets, before)
    share = changed[:, 10:].float().mean().item()
    assert share == pytest.approx(
        0.4 * (1 - 1 / VOCABULARY), abs=0.06
    )  # four standard deviations of 800 draws
    if token is not None:
        assert set(model.seen[changed].tolist()) == {7}


def test_the_probability_rises_over_the_ramp_and_stays():
    rising = objective(probability=0.4, ramp=0.5)
    assert [rising.config.at(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_draw_follows_the_seed_of_the_micro_batch():
    model, batch, masked = Recorder(), batch_of(), objective(ramp=0.0)
    seen = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masked(model, batch, run_at(5))
        seen.append(model.seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
