"""The share of unchanged entries, of changes whose share is known."""

import pytest
import torch

from lrft.methods.analysis.update_sparsity import count_unchanged


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_changed_is_all_of_it():
    assert count_unchanged(normal(8, 6), torch.zeros(8, 6), 1e-5) == (48, 48)


def test_a_low_rank_update_is_dense_and_can_vanish_in_bfloat16():
    before = 0.02 * normal(64, 48) + 0.1
    change = 1e-4 * normal(64, 2, seed=1) @ normal(2, 48, seed=2) / 2
    trained, stored = count_unchanged(before, change, 1e-6)
    assert trained < 0.1 * change.numel() < 0.5 * change.numel() < stored


def test_entries_that_moved_are_counted_and_the_count_grows_with_the_tolerance():
    before, change = torch.ones(10, 10), torch.zeros(10, 10)
    change.view(-1)[:30] = 0.5
    change.view(-1)[30:37] = 1e-3
    counts = [count_unchanged(before, change, tolerance)[0] for tolerance in (1e-5, 1e-2, 1.0)]
    assert counts == [63, 70, 100]
    assert count_unchanged(before, change, 1e-5)[1] == 70, "bfloat16 holds no 1.001"


@pytest.mark.parametrize("shift", [0.5, 0.25])
def test_it_is_torchs_own_comparison_but_for_its_relative_tolerance(shift):
    before, change = normal(20, 30), torch.where(normal(20, 30, seed=1) > 0.5, shift, 0.0)
    close = torch.isclose((before + change).bfloat16(), before.bfloat16(), rtol=0, atol=1e-5)
    assert count_unchanged(before, change, 1e-5)[1] == int(close.sum())
