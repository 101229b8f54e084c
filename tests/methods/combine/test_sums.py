"""Sums of changes: exact, cut, and what adding up factors is instead."""

from __future__ import annotations

import pytest
import torch

from lrft.api.combining.combine import combined
from lrft.export.pairs import Wanted
from lrft.registry.errors import UsageError
from tests.methods.combine.made import change, method, part


def total(parts, weights):
    return sum(weight * one.change() for weight, one in zip(weights, parts, strict=True))


def test_concatenation_is_the_weighted_sum_of_any_ranks_and_of_dense_changes():
    parts, weights = [part(0, 2, 0.5), part(1, 4, 2.0), part(2, 0)], [0.3, -1.0, 2.0]
    torch.testing.assert_close(change("cat", parts, weights), total(parts, weights), atol=1e-4, rtol=1e-5)
    A, _ = method("cat", weights[:2]).combine("layer", parts[:2])
    assert A.shape[0] == 6
    torch.testing.assert_close(change("cat", parts[:1], [1.0]), parts[0].change())


def test_a_negative_scale_stays_one():
    torch.testing.assert_close(change("cat", [part(0, scale=-2.0)]), part(0, scale=-2.0).change())


def test_the_cut_sum_is_the_nearest_of_its_rank_and_exact_where_that_reaches():
    parts, weights = [part(0, 2), part(1, 2)], [0.5, 0.5]
    found = combined(method("svd", weights), {"layer": parts}, Wanted())
    U, S, Vh = torch.linalg.svd(total(parts, weights))
    torch.testing.assert_close(
        found.pairs["layer"].dense(), (U[:, :2] * S[:2]) @ Vh[:2], atol=1e-5, rtol=1e-5
    )
    error = float(S[2:].norm() / S.norm())
    assert found.error == pytest.approx(error, rel=1e-4) and not found.sites["layer"]["exact"]
    whole = combined(method("svd", weights), {"layer": parts}, Wanted(rank=4))
    assert whole.error < 1e-5 and whole.sites["layer"]["exact"]


def test_more_factors_than_a_layer_has_directions_are_kept_whole_in_fewer():
    parts = [part(seed, 3) for seed in range(3)]
    found = combined(method("cat", [1.0] * 3), {"layer": parts}, Wanted())
    assert found.pairs["layer"].rank == 5 and found.error < 1e-5


def test_added_factors_have_cross_terms_and_equal_adapters_none():
    parts = [part(0, scale=0.5), part(1, scale=0.5)]
    a, b = parts
    crossed = 0.25 * (a.B + b.B) @ (a.A + b.A)
    torch.testing.assert_close(change("linear", parts, [0.5, 0.5]), crossed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(change("linear", [a, a], [0.5, 0.5]) / 2, a.change(), atol=1e-5, rtol=1e-5)
    assert (crossed - total(parts, [0.5, 0.5])).norm() > 0.3 * total(parts, [0.5, 0.5]).norm()
    with pytest.raises(UsageError, match=r"--method linear: .* layer .*one rank \(they have 2, 3\)"):
        change("linear", [part(0, 2), part(1, 3)])


def test_a_point_between_two_models_and_between_base_and_one():
    a, b = part(0), part(1)
    torch.testing.assert_close(
        change("wise_ft", [a, b], alpha=0.25), 0.75 * a.change() + 0.25 * b.change(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(change("wise_ft", [a], alpha=0.25), 0.25 * a.change())
    torch.testing.assert_close(change("wise_ft", [a, b], alpha=1.0), b.change())
