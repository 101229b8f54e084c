"""Ranks by budget, counted from the modules."""

from __future__ import annotations

import pytest

from lrft.lab.compare.match import match, nearest_rank
from lrft.lab.runs.planned import make_arm
from lrft.registry.errors import UsageError


@pytest.mark.parametrize(
    ("count", "target", "start", "rank"),
    [
        (lambda r: 10 * r, 130, 4, 13),
        (lambda r: 10 * r, 134, 4, 13),
        (lambda r: 10 * r, 3, 4, 1),  # less than the smallest
        (lambda r: r * r, 130, 4, 11),
        (lambda r: 10 * r if r <= 100 else None, 5000, 4, 100),  # more than the largest
        (lambda r: 10 * r if 96 % r == 0 else None, 290, 8, 32),
        (lambda r: 10 * r if r % 6 == 0 else None, 130, 6, 12),  # no power of 2 is possible
        (lambda r: 10 * r + 5, 70, 7, 7),  # a tie: 6 and 7 are as near
        (lambda r: 10 * r + 5, 70, 3, 6),
        (lambda r: -(-64 // r) * (r + 64), 300, 8, 16),  # falls: random products, fewer the larger they are
        (lambda r: 1000 // r, 10_000, 4, 1),
        (lambda r: 1000 // r if r <= 64 else None, 1, 4, 64),
    ],
)
def test_the_rank_is_the_nearest_possible(count, target, start, rank):
    assert nearest_rank(count, target, start) == rank


def test_an_adapter_that_takes_no_rank_is_said_so():
    with pytest.raises(ValueError, match="no rank"):
        nearest_rank(lambda r: None, 10, 4)


def test_an_adapter_whose_rank_changes_nothing_is_said_so():
    with pytest.raises(ValueError, match="does not change what trains"):
        nearest_rank(lambda r: 500, 10, 4)


def test_an_adapter_with_random_products_is_matched_to_lora(recipe):
    lora = make_arm("lora", recipe("lora", "{method: lora, rank: 8, alpha: 8}"))
    random = make_arm("random", recipe("random", "{method: randlora, rank: 2}"))
    _, costs = match([lora, random], "params")
    assert costs[1].rank > 2 and 0.8 < costs[1].trainable / costs[0].trainable < 1.25
    nola = make_arm("nola", recipe("nola", "{method: nola, rank: 2}"))
    with pytest.raises(UsageError, match="nola: its rank does not change what trains; give it first"):
        match([lora, nola], "params")


def test_ranks_follow_the_first_arm_and_counts_are_those_of_training(recipe):
    first = make_arm("a", recipe("a", "{method: lora, rank: 16, alpha: 32}"))
    second = make_arm("b", recipe("b", "{method: dora, rank: 2, alpha: 32}"))
    arms, costs = match([first, second], "params")
    assert arms[0] is first
    assert (costs[1].before, costs[1].rank) == (2, arms[1].recipe.adapter.rank)
    # 16 (in + out) numbers against r (in + out) + out: one rank less is nearest.
    assert costs[1].rank in (15, 16)
    assert abs(costs[1].trainable / costs[0].trainable - 1) < 0.04
    assert arms[1].recipe.adapter.alpha == 32


def test_memory_counts_the_optimizers_state(recipe):
    """Float32 Adam keeps two numbers a parameter: 12 bytes with the adapter's own. Momentum is one: 8."""
    first = make_arm("a", recipe("a", "{method: lora, rank: 4, alpha: 8}"))
    second = make_arm("b", recipe("b", extra="optimizer: sgd\n"))
    arms, costs = match([first, second], "memory")
    assert costs[0].state_bytes == 12 * costs[0].trainable
    assert arms[1].recipe.adapter.rank == 6  # 4 * 12 / 8
    assert costs[1].state_bytes == costs[0].state_bytes


def test_steps_leave_ranks_alone(recipe):
    arms = [make_arm("a", recipe("a")), make_arm("b", recipe("b", "{method: lora, rank: 9, alpha: 8}"))]
    same, costs = match(arms, "steps")
    assert same == arms
    assert [cost.rank for cost in costs] == [4, 9]


def test_an_arm_without_a_rank_can_only_be_the_first(recipe):
    full = make_arm("full", recipe("full", "null", "trainable: ['*layers.0.*_proj.weight']\n"))
    lora = make_arm("lora", recipe("lora"))
    with pytest.raises(UsageError, match=r"full has no adapter\.rank to change; give it first"):
        match([lora, full], "params")
    _, costs = match([full, lora], "params")
    assert costs[0].rank is None
    assert 0.95 < costs[1].trainable / costs[0].trainable < 1.05
