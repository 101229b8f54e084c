"""Intruder dimensions on matrices whose answer is known."""

from __future__ import annotations

import pytest
import torch

from lrft.core.analysis import Change
from lrft.methods.analysis.intruders import similarity
from lrft.registry.axes import ANALYSES


class Given:
    """Weights of a run, made by hand."""

    def __init__(self, *changes: Change) -> None:
        self.all = changes

    def names(self):
        return [change.site for change in self.all]

    def changes(self):
        return iter(self.all)


class Stub:
    def __init__(self, *changes: Change) -> None:
        self.weights, self.summary = Given(*changes), {}


@pytest.fixture
def W():
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) / 7


def unit(n: int, seed: int) -> torch.Tensor:
    vector = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def test_an_unchanged_or_scaled_weight_has_none(W):
    for after in (W, 3 * W):
        torch.testing.assert_close(similarity(W, after, 10), torch.ones(10), atol=1e-4, rtol=0)


def test_a_large_foreign_direction_is_one_intruder_and_a_small_one_is_none(W):
    """5 u v^T towers over singular values of about 2 and becomes the leading direction; 0.001 u v^T is lost."""
    foreign = torch.outer(unit(64, 1), unit(48, 2))
    found = similarity(W, W + 5 * foreign, 10)
    assert int((found < 0.5).sum()) == 1 and int(found.argmin()) == 0
    assert int((similarity(W, W + 0.001 * foreign, 10) < 0.5).sum()) == 0


def test_a_rotation_of_the_outputs_changes_nothing(W):
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(3))).Q
    after = W + 5 * torch.outer(unit(64, 1), unit(48, 2))
    torch.testing.assert_close(
        similarity(W, after, 10), similarity(rotation @ W, rotation @ after, 10), atol=1e-4, rtol=0
    )


def test_counts_are_summed_over_sites_under_the_threshold_that_is_set(W):
    foreign = 5 * torch.outer(unit(64, 1), unit(48, 2))
    run = Stub(Change("a", W, foreign), Change("b", W, torch.zeros_like(W)))
    analysis = ANALYSES.get("intruders")(ANALYSES.settings("intruders"))
    analysis.finish(run)
    found = run.summary["analysis"]["intruders"]
    assert found["count"] == {"a": 1.0, "b": 0.0}
    assert (found["count_total"], found["count_mean"]) == (1.0, 0.5)
    assert found["least"]["b"] == pytest.approx(1.0, abs=1e-4)
    strict = ANALYSES.get("intruders")(ANALYSES.settings("intruders", below=0.01))
    strict.finish(run)
    assert run.summary["analysis"]["intruders"]["count_total"] == 0.0
