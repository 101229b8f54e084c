"""What every combination keeps to: shapes, parents that change nothing, one result every time, parents left intact."""

from __future__ import annotations

import pytest
import torch

from lrft.registry.axes import COMBINATIONS
from tests.methods.combine.made import change, method, part


@pytest.mark.parametrize("name", COMBINATIONS.names())
def test_a_change_is_finite_and_the_same_every_time_and_the_parents_stay_as_they_are(name):
    parts = [part(0, scale=0.5), part(1, scale=2.0)]
    before = [(one.A.clone(), one.B.clone()) for one in parts]
    first = change(name, parts)
    assert first.shape == (7, 5) and first.dtype == torch.float32
    assert first.isfinite().all() and first.abs().sum() > 0
    assert torch.equal(first, change(name, parts))
    for one, (A, B) in zip(parts, before, strict=True):
        assert torch.equal(one.A, A) and torch.equal(one.B, B)


@pytest.mark.parametrize("name", COMBINATIONS.names())
def test_a_parent_that_changes_nothing_at_a_layer_is_no_obstacle(name):
    nothing = part(2).__class__(torch.zeros(0, 5), torch.zeros(7, 0))
    for parts in ([part(0), nothing], [nothing, part(0)], [nothing, nothing]):
        found = change(name, parts)
        assert found.shape == (7, 5) and found.isfinite().all()
    assert not change(name, [nothing, nothing]).any()


@pytest.mark.parametrize("name", [name for name in COMBINATIONS.names() if name not in ("wise_ft", "dare")])
def test_the_order_of_the_parents_is_no_difference(name):
    """Of `wise_ft` the first is one end of the line; `dare` draws one parent after the other."""
    parts = [part(0), part(1)]
    torch.testing.assert_close(change(name, parts), change(name, parts[::-1]), atol=1e-5, rtol=1e-5)


def test_weights_that_nobody_gives_are_what_the_method_says():
    assert method("cat").own_weights(4) == [0.25] * 4 and method("ties").own_weights(2) == [1.0, 1.0]
