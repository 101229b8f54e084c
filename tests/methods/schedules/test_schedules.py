"""What only one schedule promises: the published curve, or that of an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR

from lrft.recipe.load import load_recipe
from lrft.registry.axes import SCHEDULES
from lrft.registry.errors import RecipeError


def made(name: str, **settings):
    return SCHEDULES.get(name)(SCHEDULES.settings(name, **settings))


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_one_cycle_is_that_of_torch_at_every_step():
    theirs = rates(OneCycleLR(optimizer(), max_lr=1.0, total_steps=50, cycle_momentum=False), 50)
    assert [made("one_cycle").factor(step, 50) for step in range(50)] == pytest.approx(theirs, abs=1e-7)


def test_one_cycle_refuses_a_second_warm_up(recipe_of):
    with pytest.raises(RecipeError, match=r"schedule\.warmup_steps: the rise of one_cycle is its warm-up"):
        recipe_of("schedule={method: one_cycle, warmup_steps: 3}")


@pytest.mark.parametrize("stretch", [1, 2])
def test_cosine_restarts_are_those_of_torch(stretch):
    cycles, first = 3, 8
    total = sum(first * stretch**i for i in range(cycles))
    theirs = rates(CosineAnnealingWarmRestarts(optimizer(), T_0=first, T_mult=stretch, eta_min=0.1), total)
    ours = made("cosine_restarts", cycles=cycles, stretch=float(stretch), floor=0.1)
    assert [ours.factor(step, total) for step in range(total)] == pytest.approx(theirs, abs=1e-9)


def test_one_cycle_of_cosine_restarts_is_cosine():
    one, plain = made("cosine_restarts", cycles=1, warmup_steps=3), made("cosine", warmup_steps=3)
    assert [one.factor(s, 30) for s in range(30)] == pytest.approx([plain.factor(s, 30) for s in range(30)])


def test_a_shrinking_restart_begins_lower():
    schedule = made("cosine_restarts", cycles=2, shrink=0.5)
    assert [schedule.factor(step, 20) for step in (0, 10)] == pytest.approx([1.0, 0.5])


def test_more_cycles_than_steps_are_refused(recipe_of):
    with pytest.raises(RecipeError, match=r"schedule\.cycles: .* use at most 2"):
        recipe_of("schedule={method: cosine_restarts, cycles: 4}", "train.max_steps=3")


def test_wsd_is_constant_and_then_falls_in_its_last_part():
    for shape, half in (("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))):
        schedule = made("wsd", decay=0.2, shape=shape)
        assert [schedule.factor(step, 50) for step in (0, 20, 40)] == pytest.approx([1, 1, 1])
        assert [schedule.factor(step, 50) for step in (45, 50)] == pytest.approx([half, 0])


def test_wsd_that_falls_all_the_way_is_linear():
    one, plain = made("wsd", decay=1.0, shape="linear"), made("linear")
    assert [one.factor(s, 30) for s in range(30)] == pytest.approx([plain.factor(s, 30) for s in range(30)])


def test_inverse_sqrt_is_the_transformers_own_scaled_to_one():
    """d^-0.5 min(step^-0.5, step w^-1.5) over its height, at step = finished + 1."""
    warmup, schedule = 10, made("inverse_sqrt", warmup_steps=10)
    published = [min((s + 1) ** -0.5, (s + 1) * warmup**-1.5) / warmup**-0.5 for s in range(60)]
    ours = [schedule.factor(s, 60) for s in range(60)]
    # The warm-up here reaches the full rate one step later, at the first step after it.
    assert ours[warmup:] == pytest.approx([math.sqrt(warmup / s) for s in range(warmup, 60)])
    assert max(abs(a - b) for a, b in zip(ours[warmup:], published[warmup:], strict=True)) < 0.05


def test_inverse_sqrt_does_not_know_the_length_of_the_run():
    schedule = made("inverse_sqrt", timescale=100)
    assert [schedule.factor(s, 50) for s in range(50)] == [schedule.factor(s, 5000) for s in range(50)]


@pytest.fixture
def recipe_of():
    return lambda *overrides: load_recipe("quickstart", overrides)
