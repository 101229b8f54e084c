"""What every schedule promises, whatever its name."""

from __future__ import annotations

import math

import pytest

from lrft.registry.axes import SCHEDULES

TOTAL = 40
NAMES = SCHEDULES.names()
ALL = pytest.mark.parametrize("name", NAMES)
# A schedule whose rise is its own refuses a second one.
WARMED = pytest.mark.parametrize(
    "name", [name for name in NAMES if "rise" not in SCHEDULES.declared(name).config.model_fields]
)


def made(name: str, **settings):
    return SCHEDULES.get(name)(SCHEDULES.settings(name, **settings))


@ALL
@pytest.mark.parametrize("total", [1, 2, 3, TOTAL])
def test_every_step_has_a_factor_between_nothing_and_the_full_rate(name, total):
    factors = [made(name).factor(step, total) for step in range(total)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 + 1e-9 for factor in factors)
    assert max(factors) > 0


@ALL
def test_the_full_rate_is_reached_and_the_first_step_moves(name):
    factors = [made(name).factor(step, TOTAL) for step in range(TOTAL)]
    assert max(factors) == pytest.approx(1, abs=1e-6) and factors[0] > 0


@WARMED
def test_a_warm_up_rises_evenly_to_the_full_rate(name):
    factors = [made(name, warmup_steps=4).factor(step, TOTAL) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@WARMED
def test_a_warm_up_that_is_a_share_is_that_of_its_steps(name):
    share, steps = made(name, warmup_ratio=0.1), made(name, warmup_steps=4)
    assert [share.factor(s, TOTAL) for s in range(TOTAL)] == [steps.factor(s, TOTAL) for s in range(TOTAL)]


@ALL
def test_it_is_a_function_of_the_step_alone(name):
    schedule = made(name)
    forwards = [schedule.factor(step, TOTAL) for step in range(TOTAL)]
    assert [schedule.factor(step, TOTAL) for step in reversed(range(TOTAL))] == forwards[::-1]


@ALL
def test_between_two_steps_it_lies_between_them_or_jumps(name):
    """A chain of restarts runs a schedule faster, and asks it between whole steps."""
    schedule = made(name)
    for step in range(TOTAL - 1):
        low, high = sorted((schedule.factor(step, TOTAL), schedule.factor(step + 1, TOTAL)))
        between = schedule.factor(step + 0.5, TOTAL)
        assert low - 0.05 <= between <= max(high, 1.0) + 1e-9


@ALL
def test_a_floor_is_a_lower_bound_after_the_full_rate(name):
    factors = [made(name, floor=0.25).factor(step, TOTAL) for step in range(TOTAL + 1)]
    peak = max(range(len(factors)), key=factors.__getitem__)
    assert min(factors[peak:]) >= 0.25 - 1e-9
