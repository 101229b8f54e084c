"""`random`, `length` and `perplexity`."""

from __future__ import annotations

import math

import torch

from lrft.core.data_selection import Measured
from lrft.registry.axes import DATA_SELECTIONS


def rows(name, learnt, losses=None, budget=3, seed=0, **settings):
    method = DATA_SELECTIONS.get(name)(DATA_SELECTIONS.settings(name, **settings))
    features = None if losses is None else torch.tensor(losses)[:, None]
    return method.choose(Measured(learnt, features), None, budget, seed).chosen


def test_length_keeps_the_longest_answers_or_the_shortest():
    assert [one.row for one in rows("length", [4, 9, 1, 9, 5])] == [1, 3, 4]
    assert [one.row for one in rows("length", [4, 9, 1, 9, 5], order="shortest")] == [2, 0, 4]
    assert rows("length", [4, 9, 1])[0].reason == "9 tokens learnt"


def test_perplexity_keeps_the_middle_of_the_order_or_an_end():
    losses = [0.1, 5.0, 2.0, 9.0, 3.0]
    assert {one.row for one in rows("perplexity", [1] * 5, losses)} == {1, 2, 4}
    assert [one.row for one in rows("perplexity", [1] * 5, losses, keep="low")] == [0, 2, 4]
    assert [one.row for one in rows("perplexity", [1] * 5, losses, keep="high")] == [3, 1, 4]
    assert rows("perplexity", [1], [math.log(7)], 1)[0].reason == "perplexity 7"


def test_every_row_is_drawn_as_often():
    counts = torch.zeros(8)
    for seed in range(400):
        for one in rows("random", [1] * 8, budget=2, seed=seed):
            counts[one.row] += 1
    assert counts.sum() == 800 and counts.min() > 70 and counts.max() < 130
