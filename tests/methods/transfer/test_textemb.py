"""TextEmb: the cosine of two means, whatever else is alike."""

from __future__ import annotations

import pytest
import torch

from lrft.registry.axes import TRANSFER_ESTIMATES
from lrft.registry.errors import DataError


def score(source, target):
    made = TRANSFER_ESTIMATES.get("textemb")(TRANSFER_ESTIMATES.settings("textemb"))
    return made.of_rows(torch.tensor(source), torch.tensor(target))


def test_it_is_the_cosine_of_the_means_and_not_the_mean_of_cosines():
    assert score([[2.0, 0.0], [0.0, 2.0]], [[3.0, 3.0]]) == pytest.approx(1.0)
    assert score([[3.0, 4.0]], [[1.0, 0.0]]) == pytest.approx(0.6)
    assert score([[1.0, 0.0]], [[-2.0, 0.0], [-4.0, 0.0]]) == pytest.approx(-1.0)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(DataError, match="no direction"):
        score([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0]])
