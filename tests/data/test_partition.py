"""How rows are shared among clients."""

from __future__ import annotations

from collections import Counter

import pytest

from lrft.data.partition import by_length, by_value, dirichlet, even
from lrft.registry.errors import DataError
from tests.each import each

ROWS = list(range(3, 603))
LABELS = ["abc"[row % 3] for row in ROWS]
WAYS = {
    "even": lambda seed: even(ROWS, 7, seed),
    "dirichlet": lambda seed: dirichlet(ROWS, LABELS, 7, 0.5, seed),
    "by_value": lambda seed: by_value(ROWS, [str(row % 10) for row in ROWS], 7),
}


@each("way", list(WAYS))
def test_every_row_is_held_once_and_a_seed_gives_the_same_shares(way):
    shares = WAYS[way](1)
    assert sorted(row for share in shares for row in share) == ROWS
    assert all(share and share == sorted(share) for share in shares)
    assert WAYS[way](1) == shares
    assert (WAYS[way](2) == shares) == (way == "by_value")


def test_even_shares_differ_by_a_row():
    assert {len(share) for share in even(ROWS, 7, 0)} == {85, 86}


def spread(alpha):
    """How far the labels of clients lie from those of all: 0 where they are alike."""
    label = dict(zip(ROWS, LABELS, strict=True))
    shares = dirichlet(ROWS, LABELS, 6, alpha, 0)
    counts = [Counter(label[row] for row in share) for share in shares]
    return sum(abs(c[k] / sum(c.values()) - 1 / 3) for c in counts for k in "abc") / 6


def test_a_small_alpha_makes_clients_differ_and_a_large_one_alike():
    assert spread(0.1) > 0.6 > 0.3 > spread(100.0)


def test_the_shares_of_a_label_have_the_mean_and_variance_of_a_dirichlet_draw():
    """Of K clients a share has the mean 1 / K and the variance (K - 1) / (K^2 (K alpha + 1))."""
    alpha, clients = 2.0, 4
    found = []
    for seed in range(200):
        shares = dirichlet(list(range(400)), ["a"] * 400, clients, alpha, seed)
        found += [len(share) / 400 for share in shares]
    mean = sum(found) / len(found)
    variance = sum((share - mean) ** 2 for share in found) / len(found)
    assert mean == pytest.approx(1 / clients)
    assert variance == pytest.approx((clients - 1) / (clients**2 * (clients * alpha + 1)), rel=0.15)


def test_a_value_belongs_to_one_client_and_the_most_frequent_are_spread_first():
    values = ["x"] * 6 + ["y"] * 3 + ["z"] * 2 + ["w"]
    shares = by_value(list(range(12)), values, 2)
    assert [{values[row] for row in share} for share in shares] == [{"x"}, {"y", "z", "w"}]


def test_classes_by_length_are_tenths():
    assert by_length([5, 1, 3]) == ["6", "0", "3"]
    assert Counter(by_length(list(range(100)))) == {str(k): 10 for k in range(10)}


@each(
    ("share", "said"),
    [
        (lambda: even([1, 2], 3, 0), "write at most 2"),
        (lambda: dirichlet([1, 2], ["a", "a"], 3, 1.0, 0), "write at most 2"),
        (lambda: dirichlet(list(range(6)), ["a"] * 6, 6, 0.01, 0), "write a larger alpha"),
        (lambda: by_value([1, 2, 3], ["a", "a", "b"], 3), "federate.clients: 2"),
    ],
)
def test_rows_that_do_not_reach_are_refused(share, said):
    with pytest.raises(DataError, match=said):
        share()
