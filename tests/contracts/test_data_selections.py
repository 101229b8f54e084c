"""What every selection of rows keeps to: the budget, the seed, and no regard to where a row stands."""

from __future__ import annotations

import torch

from lrft.core.data_selection import Measured
from lrft.registry.axes import DATA_SELECTIONS
from tests.each import each

ROWS, TARGETS, WIDTH = 24, 5, 6
NAMES = DATA_SELECTIONS.names()
SCORE_NO_ROW_ALONE = ("random", "perplexity", "tarot")  # draws; scores the order; refuses equal gradients


def made(name, **settings):
    return DATA_SELECTIONS.get(name)(DATA_SELECTIONS.settings(name, **settings))


def measured(method, count, seed, order=None):
    draw = torch.Generator().manual_seed(seed)
    learnt = torch.randperm(200, generator=draw)[:count] + 1
    features = torch.randn(count, 1 if method.need == "losses" else WIDTH, generator=draw)
    if order is not None:
        learnt, features = learnt[order], features[order]
    return Measured(learnt.tolist(), features if method.need else None)


def chosen(name, budget=7, seed=0, order=None, **settings):
    method = made(name, **settings)
    target = measured(method, TARGETS, 2) if method.targeted else None
    return method.choose(measured(method, ROWS, 1, order), target, budget, seed).chosen


@each("name", NAMES)
def test_as_many_rows_as_asked_each_once_and_the_same_for_the_same_seed(name):
    for budget in (1, 7, ROWS):
        rows = [one.row for one in chosen(name, budget)]
        assert len(rows) == len(set(rows)) == budget and set(rows) <= set(range(ROWS))
    assert chosen(name) == chosen(name) and all(one.reason for one in chosen(name))


@each("name", [name for name in NAMES if name != "random"])
def test_the_rows_are_the_same_in_whatever_order_the_pool_is(name):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    plain, moved = chosen(name), chosen(name, order=order)
    assert all(abs(a.score - b.score) < 1e-6 for a, b in zip(plain, moved, strict=True))
    last = min(one.score for one in plain) + 1e-6  # of rows with that score some may be left out
    above = {one.row for one in plain if one.score > last}
    assert above == {int(order[one.row]) for one in moved if one.score > last} != set()


@each("name", [name for name in NAMES if name not in SCORE_NO_ROW_ALONE])
def test_of_rows_with_one_score_the_earlier_is_taken(name):
    method = made(name)
    same = Measured([3] * 6, torch.ones(6, 1 if method.need == "losses" else WIDTH) if method.need else None)
    target = measured(method, TARGETS, 2) if method.targeted else None
    assert [one.row for one in method.choose(same, target, 4, 0).chosen] == [0, 1, 2, 3]


@each("name", [name for name in NAMES if name != "tarot"])
def test_a_smaller_budget_keeps_the_first_of_a_larger_one(name):
    assert chosen(name, 5) == chosen(name, 11)[:5]
