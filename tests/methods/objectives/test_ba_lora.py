"""BA-LoRA's own statements: its equation, what each regulariser is at its ends, a reference that is the base."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.data.collate import collate
from lrft.methods.objectives.ba_lora import first_share
from lrft.ops.loss import Head
from lrft.registry.errors import RecipeError
from tests.methods.objectives.told import Table, batch_of, drawn, judged, objective

ROWS = [([0, 1], [2, 3, 1, 0]), ([2], [1, 1]), ([3, 3], [2])]
OFF = {"consistency": 0.0, "diversity": 0.0, "directions": 0.0}


def batch():
    return batch_of(*(judged(prompt, tokens, None) for prompt, tokens in ROWS))


def test_loss_and_gradient_are_those_of_the_equation():
    weights = {"consistency": 0.7, "diversity": 0.4, "directions": 0.3, "k": 1}
    reference, policy = drawn(0), drawn(1)
    model = Table(reference, policy)
    loss = objective("ba_lora", **weights)(model, batch())
    loss.backward()
    logits = torch.tensor(policy).log().mT.clone().requires_grad_(True)
    expected = 0.0
    for prompt, tokens in ROWS:
        before = [prompt[-1], *tokens[:-1]]
        Z = logits[:, before].mT
        p, q = Z.softmax(-1), torch.tensor(reference)[before]
        expected = expected - sum(p[n, token].log() for n, token in enumerate(tokens))
        expected = expected + 0.7 * (q * (q / p).log()).sum() + 0.4 * (p * p.log()).sum()
        energy = torch.linalg.eigvalsh(Z.double() @ Z.double().mT).clamp(min=1e-20).sqrt()
        expected = expected - 0.3 * len(tokens) * energy.max() / energy.sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.logits.grad, logits.grad, rtol=1e-3, atol=1e-4)


def test_divergence_and_entropy_are_those_that_the_authors_code_gives():
    """Figures of the two expressions of their trainer, run once on logits (2, 3, 4): a mean over the 2 samples of the
    divergence of all their positions, and the mean entropy of the 6 positions."""

    def waves(start):
        k = torch.arange(24, dtype=torch.float64)
        return (2 * torch.sin(start + 1.7 * k + 0.3 * k**1.5)).reshape(2, 3, 4).float()

    class Said(Table):
        def hidden(self, batch):
            logits = waves(4.0) if self.table.enabled else waves(1.0)
            return torch.cat([logits, logits[:, :1]], dim=1)  # of the last position nothing is learnt

    model, given = Said(drawn(0), drawn(1)), batch_of(*(judged([0], [1, 2, 3], None) for _ in range(2)))
    plain = objective("ba_lora", **OFF)(model, given)
    divergence = objective("ba_lora", **{**OFF, "consistency": 1.0})(model, given) - plain
    entropy = plain - objective("ba_lora", **{**OFF, "diversity": 1.0})(model, given)
    assert divergence.item() == pytest.approx(2 * 6.1093750358431596, rel=1e-5)
    assert entropy.item() == pytest.approx(6 * 0.8812272872524174, rel=1e-5)


def test_without_weights_it_is_cross_entropy():
    model, given = Table(drawn(0), drawn(1)), batch()
    torch.testing.assert_close(
        objective("ba_lora", **OFF)(model, given), objective("cross_entropy")(model, given)
    )


def test_each_regulariser_is_what_it_is_at_its_ends():
    """Of the same model the divergence is 0; of flat predictions the entropy is log 4 a token and the first share 1."""
    given, moved = batch(), drawn(1)

    def beside(reference, policy, **weights):
        model = Table(reference, policy)
        found = objective("ba_lora", **{**OFF, **weights})(model, given) - objective("cross_entropy")(
            model, given
        )
        return found.item()

    assert beside(moved, moved, consistency=1.0) == pytest.approx(0, abs=1e-5)
    assert beside(drawn(0), moved, consistency=1.0) > 0.1
    flat = [0.25] * 4
    assert beside(moved, flat, diversity=1.0) == pytest.approx(-7 * math.log(4), abs=1e-4)
    assert beside(moved, flat, directions=1.0, k=1) == pytest.approx(-7, abs=1e-4)
    assert -7 < beside(moved, moved, directions=1.0, k=1) < -1


def test_the_share_of_the_first_directions():
    assert first_share(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1).item() == pytest.approx(0.5)
    assert first_share(torch.randn(2, 5), 3).item() == pytest.approx(1)
    assert first_share(torch.zeros(2, 5), 1).item() == 0


def test_the_reference_runs_first_without_adapters_and_a_base_that_trains_is_refused():
    model, seen = Table(drawn(0), drawn(1)), []
    model.table.register_forward_hook(lambda *_: seen.append((model.table.enabled, torch.is_grad_enabled())))
    objective("ba_lora")(model, batch())
    assert seen == [(False, False), (True, True)]
    run = SimpleNamespace(parameters=[ParamInfo("norm", model.logits, "vector")], metrics={})
    with pytest.raises(RecipeError, match="ba_lora measures against the base"):
        objective("ba_lora")(model, batch(), run)


class Stub(nn.Module):
    """Hidden states that train, before a frozen head of many tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.states = nn.Parameter(torch.randn(1, tokens, 8))
        self.head = Head(nn.Linear(8, 500).requires_grad_(False))

    def hidden(self, batch):
        return self.states


def test_logits_are_not_kept_for_the_backward_pass():
    model = Stub(24)
    rows = [judged([0], [1] * 7, None) for _ in range(3)]
    given, kept = collate([rows], 0, None, [[0, 1, 2]]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = objective("ba_lora")(model, given)
    assert max(kept) < 7 * 500 and sum(kept) < 4 * model.states.numel()
    loss.backward()
    assert model.states.grad.any()
