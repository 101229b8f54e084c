"""Weights on their way into a file: right on average, on the grid, the same every time, and never infinite."""

from __future__ import annotations

import pytest
import torch

from lrft.export.rounding import rounded
from lrft.ops.rounding import stochastic_round
from lrft.registry.errors import NumericalError

DTYPES = (torch.bfloat16, torch.float16)
GOLDEN = [0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1]  # 1.005 is 0.64 of a step above 1
# Scales at which float16 is normal, at its smallest normal numbers, subnormal, and below all it can say.
SCALES = (1.0, 1e-4, 2e-5, 1e-6, 3e-8)


def values(scale: float, count: int = 200_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * scale


def neighbours(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of `dtype` at and around x, by torch's own cast and the step of its integer bits."""
    size = x.abs()
    nearest = size.to(dtype)
    low = nearest.view(torch.int16) - (nearest.float() > size).to(torch.int16)
    high = low + (low.view(dtype).float() < size).to(torch.int16)
    return low.view(dtype).float().copysign(x), high.view(dtype).float().copysign(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_number_goes_to_one_of_its_two_neighbours(dtype, scale):
    x = values(scale)
    found = rounded("w", x, dtype).float()
    low, high = neighbours(x, dtype)
    assert ((found == low) | (found == high)).all()
    assert (found == low).any() and (found == high).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_rounding_is_right_on_average_and_nearest_is_not(dtype, scale):
    x = torch.full((400_000,), 1.0007 * scale)
    low, high = (float(edge[0]) for edge in neighbours(x[:1], dtype))
    error = (float(rounded("w", x, dtype).double().mean()) - float(x[0])) / (high - low)
    assert abs(error) < 4 * 0.5 / 400_000**0.5
    assert abs(float(x[0].to(dtype)) - float(x[0])) / (high - low) > 0.005


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_on_the_grid_stays_sign_of_zero_included(dtype):
    x = torch.cat([values(1.0), values(1e-6), torch.tensor([0.0, -0.0])]).to(dtype)
    assert torch.equal(rounded("w", x.float(), dtype).view(torch.int16), x.view(torch.int16))


def test_a_negative_number_too_small_for_float16_keeps_its_sign():
    found = rounded("w", torch.full((64,), -1e-12), torch.float16)
    assert (found == 0).all() and found.signbit().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_name_gives_the_same_bytes_and_another_name_others(dtype):
    x = values(1.0, 1000)
    assert torch.equal(rounded("a", x, dtype), rounded("a", x.clone(), dtype))
    assert not torch.equal(rounded("a", x, dtype), rounded("b", x, dtype))
    assert torch.equal(
        rounded("a", x.view(10, 100).mT.contiguous().mT, dtype).flatten(), rounded("a", x, dtype)
    )


def test_every_process_gives_the_same_bytes():
    found = rounded("layer.weight", torch.full((16,), 1.005), torch.bfloat16)
    up = [
        int(value)
        for value in found.view(torch.int16) - torch.tensor(1.0, dtype=torch.bfloat16).view(torch.int16)
    ]
    assert up == GOLDEN


def test_the_draws_of_a_large_tensor_do_not_repeat(monkeypatch):
    monkeypatch.setattr("lrft.export.rounding.CHUNK", 50)
    found = rounded("w", torch.full((100,), 1.003), torch.bfloat16)
    assert not torch.equal(found[:50], found[50:])


def test_bfloat16_is_rounded_as_training_rounds_it():
    x, bits = values(1.0, 5000), torch.Generator().manual_seed(7)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(7))
    expected = ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
    assert torch.equal(stochastic_round(x, bits), expected)


def test_float32_has_nothing_to_round():
    assert torch.equal(rounded("w", values(1.0, 100), torch.float32), values(1.0, 100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
def test_what_is_not_finite_is_refused_by_name(bad, dtype):
    with pytest.raises(
        NumericalError, match=r"layer\.weight: 1 of its 2 values are not finite.*nothing was written"
    ):
        rounded("layer.weight", torch.tensor([1.0, bad]), dtype)


def test_what_is_beyond_float16_is_refused_by_name_and_its_largest_number_is_not():
    with pytest.raises(
        NumericalError, match=r"layer\.weight: its largest value 70000 is beyond float16.*65504"
    ):
        rounded("layer.weight", torch.tensor([-70000.0, 3.0]), torch.float16)
    edge = torch.tensor([65504.0, -65504.0, 65510.0]).repeat(1000)
    assert (rounded("w", edge, torch.float16).float().abs() == 65504).all()
