"""Learning-rate factors."""

from __future__ import annotations

import math

import pytest

from lrft.registry.axes import SCHEDULES


def factor(method: str, step: float, warmup: int, total: int, floor: float = 0.0) -> float:
    return SCHEDULES.get(method)(SCHEDULES.settings(method, warmup_steps=warmup, floor=floor)).factor(
        step, total
    )


@pytest.mark.parametrize("method", ["linear", "cosine", "constant"])
def test_warm_up_rises_from_above_zero_to_one(method):
    rates = [factor(method, step, 4, 20) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_linear_falls_evenly_to_zero():
    assert [factor("linear", step, 0, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_cosine_is_half_a_period():
    assert factor("cosine", 5, 0, 10) == pytest.approx(0.5)
    assert factor("cosine", 2, 0, 10) == pytest.approx((1 + math.cos(math.pi / 5)) / 2)
    assert factor("cosine", 10, 0, 10) == pytest.approx(0)


def test_constant_stays():
    assert factor("constant", 999, 3, 10) == 1.0


@pytest.mark.parametrize("method", ["linear", "cosine"])
def test_a_floor_is_where_the_rate_ends_and_not_where_it_starts(method):
    assert factor(method, 2, 2, 10, 0.1) == pytest.approx(1.0)
    assert factor(method, 6, 2, 10, 0.1) == pytest.approx(0.55)
    assert factor(method, 10, 2, 10, 0.1) == pytest.approx(0.1)
    assert factor(method, 0, 3, 10, 0.1) == pytest.approx(
        0.25
    )  # the warm-up rises from near zero all the same
