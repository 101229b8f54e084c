"""Model Stock: how far the mean is from the base, by the angle between the parents."""

from __future__ import annotations

import pytest
import torch

from lrft.core.combine import Part
from lrft.methods.combine.model_stock import ratio
from lrft.registry.errors import UsageError
from tests.methods.combine.made import change, method, part


def dense(value):
    return Part(torch.zeros(0, 2), torch.zeros(value.shape[0], 0), dense=value)


def test_three_parents_with_a_cosine_of_three_tenths():
    gram = torch.full((3, 3), 0.3) + 0.7 * torch.eye(3)
    changes = torch.linalg.cholesky(gram)[:, None]
    assert ratio(changes).item() == pytest.approx(0.5625, rel=1e-5)  # 3 * 0.3 / (1 + 2 * 0.3)


def test_equal_parents_stay_and_parents_at_a_right_angle_give_the_base():
    one = part(0)
    torch.testing.assert_close(change("model_stock", [one, one]), one.change(), atol=1e-5, rtol=1e-5)
    left, right = dense(torch.tensor([[1.0, 0.0]])), dense(torch.tensor([[0.0, 2.0]]))
    assert change("model_stock", [left, right]).abs().max() < 1e-6


def test_each_row_can_have_a_ratio_of_its_own():
    left = dense(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    right = dense(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    found = change("model_stock", [left, right], per="row")
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=1e-6, rtol=1e-6)


def test_parents_that_point_apart_go_back_or_stay_at_the_base_and_opposites_are_refused():
    left, right = dense(torch.tensor([[1.0, 0.0]])), dense(torch.tensor([[-0.5, 1.0]]))
    assert change("model_stock", [left, right]).norm() > 0.1
    assert not change("model_stock", [left, right], negative="zero").any()
    with pytest.raises(UsageError, match="opposite directions"):
        change("model_stock", [left, dense(torch.tensor([[-1.0, 0.0]]))])


def test_the_ratios_are_kept_for_the_certificate():
    made = method("model_stock")
    made.combine("layer", [part(0), part(0)])
    assert made.found() == {"layer": pytest.approx(1.0, rel=1e-5)}
