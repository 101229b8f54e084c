"""The draw behind dropout: its share, its independence, and who gets the same one."""

from __future__ import annotations

import pytest
import torch

from lrft.ops.dropout import SPARSE, clear, drop, positions


def mask(found):
    """Where entries were dropped, whatever the form."""
    return clear(torch.ones_like(found.kept), found.zeros) == 0


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.1, SPARSE, 0.5, 0.9])
def test_the_share_is_the_probability_and_the_expectation_is_x(probability):
    torch.manual_seed(0)
    x = torch.ones(1000, 1000)
    found = drop(x, probability)
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert mask(found).float().mean().item() == pytest.approx(probability, abs=5 * deviation)
    assert found.factor == pytest.approx(1 / (1 - probability))
    assert torch.equal(found.kept, (~mask(found)).float())
    assert torch.equal(found.whole(x), found.factor * found.kept)


def test_entries_are_dropped_independently_of_their_neighbours():
    """Two that are 1 to 40 apart are both dropped as often as chance has it, and so is every place of a row."""
    torch.manual_seed(1)
    p, rows, width = 0.2, 20_000, 64
    zeros = mask(drop(torch.ones(rows, width), p)).float()
    assert (zeros.mean(0) - p).abs().max() < 5 * (p * (1 - p) / rows) ** 0.5
    flat = zeros.flatten()
    for apart in range(1, 41):
        both = (flat[:-apart] * flat[apart:]).mean().item()
        assert both == pytest.approx(p * p, abs=5 * p / flat.numel() ** 0.5)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("probability", [1e-6, 0.05, SPARSE])
def test_positions_are_in_range_ascending_and_never_too_few(count, probability):
    torch.manual_seed(2)
    for _ in range(50):
        found = positions(count, probability)
        assert torch.equal(found, found.unique()) and bool(((found >= 0) & (found < count)).all())
    torch.manual_seed(2)
    often = torch.cat([positions(count, probability) for _ in range(400)])
    expected = 400 * count * probability
    assert abs(len(often) - expected) <= 6 * expected**0.5 + 1


@pytest.mark.parametrize("shape", [(3,), (1, 5), (2, 3, 7)])
def test_any_shape_is_drawn_for(shape):
    found = drop(torch.ones(shape), 0.5)
    assert found.kept.shape == (torch.ones(shape).numel() // shape[-1], shape[-1])


def test_who_reads_the_same_tensor_gets_the_same_draw():
    x = torch.ones(8, 64)
    first = drop(x, 0.5)
    assert drop(x, 0.5) is first and drop(x, 0.25) is not first
    assert drop(x.clone(), 0.5) is not first
    assert drop(x, 0.5, shared=False) is not first


def test_a_tensor_that_was_written_to_is_drawn_for_anew():
    x = torch.ones(8, 64)
    first = drop(x, 0.5)
    x.mul_(2)
    again = drop(x, 0.5)
    assert again is not first and again.kept.max() == 2


def test_a_seed_gives_one_draw_whatever_the_precision():
    x = torch.ones(16, 48)
    draws = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        draws.append(drop(x.to(dtype), 0.3).zeros)
    assert torch.equal(*draws)


def test_a_draw_in_between_ends_the_sharing():
    x = torch.ones(8, 64)
    first = drop(x, 0.5)
    torch.rand(1)
    assert drop(x, 0.5) is not first


def test_recomputed_from_the_same_state_the_draws_are_the_same():
    """Activation checkpointing calls with the very tensors of the first pass and the generator set back."""

    def segment(x):
        return [drop(x, 0.1).zeros, drop(x, 0.1).zeros, drop(x.clone(), 0.1).zeros]

    x = torch.ones(8, 64)
    state = torch.get_rng_state()
    first = segment(x)
    torch.rand(3)
    torch.set_rng_state(state)
    for one, other in zip(first, segment(x), strict=True):
        assert torch.equal(one, other)
