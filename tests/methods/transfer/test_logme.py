"""LogME against the density that it maximises, searched over directly."""

from __future__ import annotations

import pytest
import torch

from lrft.registry.axes import TRANSFER_ESTIMATES
from lrft.registry.errors import DataError
from tests.each import each


def made():
    return TRANSFER_ESTIMATES.get("logme")(TRANSFER_ESTIMATES.settings("logme"))


def task(rows, width, told, classes=3, seed=0):
    """Features, and classes that they tell with so much noise in the way."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=draw)
    scores = told * features @ torch.randn(width, classes, generator=draw)
    return features, (scores + torch.randn(rows, classes, generator=draw)).argmax(1)


def searched(features, y):
    """max over alpha, beta of log N(y; 0, I / beta + F F^T / alpha) / N, by the covariance itself and L-BFGS."""
    return max(climbed(features.double(), y, begin) for begin in (-2.0, 0.0, 2.0))


def climbed(features, y, begin):
    logs = torch.tensor([begin, 0.0], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([logs], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def density():
        alpha, beta = logs.exp()
        covariance = torch.eye(len(y), dtype=torch.float64) / beta + features @ features.T / alpha
        zeros = torch.zeros(len(y), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zeros, covariance).log_prob(y) / len(y)

    def closure():
        solver.zero_grad()
        loss = -density()
        loss.backward()
        return loss

    solver.step(closure)
    return float(density().detach())


@each(("rows", "width"), [(60, 5), (40, 39), (30, 80)])
def test_the_score_is_the_maximum_of_the_evidence(rows, width):
    features, classes = task(rows, width, 0.5)
    expected = sum(searched(features, (classes == c).double()) for c in range(3)) / 3
    assert made().of_answers(features, classes) == pytest.approx(expected, abs=2e-3)


def test_features_that_tell_more_of_the_answers_score_higher():
    scores = [made().of_answers(*task(200, 8, told)) for told in (0.0, 0.3, 1.0, 3.0)]
    assert scores == sorted(scores) and scores[-1] - scores[0] > 0.15


def test_more_features_that_tell_nothing_do_not_help():
    features, classes = task(80, 6, 1.0)
    noise = torch.randn(80, 300, generator=torch.Generator().manual_seed(5))
    assert made().of_answers(torch.cat([features, noise], 1), classes) < made().of_answers(features, classes)


def test_a_turn_of_the_features_changes_nothing():
    features, classes = task(50, 7, 1.0)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))[0]
    assert made().of_answers(features @ turn, classes) == pytest.approx(
        made().of_answers(features, classes), abs=1e-5
    )


@each(("rows", "width"), [(60, 8), (40, 200)])
def test_the_scale_of_the_states_changes_nothing(rows, width):
    """As that of alpha takes it up; the base and the sources have states of scales of their own."""
    features, classes = task(rows, width, 1.0)
    scores = [made().of_answers(scale * features.double(), classes) for scale in (0.01, 1.0, 30.0, 1000.0)]
    assert scores == pytest.approx([scores[1]] * 4, abs=1e-6)


def test_one_class_is_refused():
    with pytest.raises(DataError, match="one answer all of them"):
        made().of_answers(torch.randn(5, 3), torch.zeros(5))
