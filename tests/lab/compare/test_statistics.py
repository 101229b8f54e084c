"""Intervals and tests of a few values against closed forms."""

from __future__ import annotations

import math

import pytest

from lrft.lab.compare import statistics
from lrft.lab.compare.statistics import bootstrap_interval, crossed_interval, paired, sign_flip_p


def test_the_interval_of_two_values_is_their_range():
    """Each resample of two equal values has probability 1/4, which is more than a tail."""
    assert bootstrap_interval([1.0, 3.0]) == (1.0, 3.0)


def test_the_interval_of_one_value_is_that_value():
    assert bootstrap_interval([2.5]) == (2.5, 2.5)


def test_a_level_of_a_half_of_two_values_ends_where_a_quarter_of_the_resamples_does():
    """Means 1, 2, 3 with probability 1/4, 1/2, 1/4: a tail of 0.25 is reached at 1, one of 0.3 at 2."""
    assert bootstrap_interval([1.0, 3.0], level=0.5) == (1.0, 3.0)
    assert bootstrap_interval([1.0, 3.0], level=0.4) == (2.0, 2.0)


def test_zeros_and_ones_give_the_binomial_quantiles():
    """The resampled sum of k ones among n values is binomial(n, k / n)."""
    values, n, p = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 7, 2 / 7
    weights = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    low = next(k for k in range(n + 1) if sum(weights[: k + 1]) >= 0.025)
    high = next(k for k in range(n, -1, -1) if sum(weights[k:]) >= 0.025)
    assert bootstrap_interval(values) == pytest.approx((low / n, high / n))


def test_drawn_resamples_agree_with_counted_ones(monkeypatch):
    values = [0.3, 1.1, 0.7, 0.2, 0.9, 1.4, 0.5, 0.8]
    exact = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "EXACT_RESAMPLES", 0)
    assert bootstrap_interval(values) == pytest.approx(exact, abs=0.01)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_the_interval_moves_and_stretches_with_the_values():
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    low, high = bootstrap_interval(values)
    assert bootstrap_interval([5 - 2 * v for v in values]) == pytest.approx((5 - 2 * high, 5 - 2 * low))


def test_no_values_and_no_level_are_refused():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=1.0)


def test_three_differences_of_one_sign_have_p_one_quarter():
    assert sign_flip_p([0.1, 0.4, 0.2]) == 2 / 2**3
    assert sign_flip_p([-0.1, -0.4, -0.2, -0.3, -0.1]) == 2 / 2**5


def test_one_small_difference_of_the_other_sign_is_counted():
    """|sum| of (3, 2, -1) is 4; +-6 and +-4 reach it: all equal, or the smallest flipped."""
    assert sign_flip_p([3.0, 2.0, -1.0]) == 4 / 8


def test_no_difference_has_p_one():
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1
    assert sign_flip_p([1.0, -1.0]) == 1


def test_drawn_signs_agree_with_counted_ones(monkeypatch):
    differences = [0.5, -0.2, 0.9, 0.1, 0.4, -0.3, 0.7]
    exact = sign_flip_p(differences)
    monkeypatch.setattr(statistics, "EXACT_FLIPS", 0)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)


def test_paired_counts_signs_and_ties():
    found = paired([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 2.5, 5.0])
    assert (found.lower, found.higher, found.pairs) == (2, 1, 4)
    assert found.mean == pytest.approx(-0.25)
    assert found.interval[0] <= found.mean <= found.interval[1]


def test_a_shift_that_all_seeds_share_has_no_spread():
    """What pairing is for: seeds differ by far more than the arms do."""
    found = paired([1.0, 5.0, 3.0], [1.25, 5.25, 3.25])
    assert found.interval == (-0.25, -0.25)


def test_a_crossed_interval_is_that_of_the_seeds_where_all_rows_are_alike():
    arm, against = [[1.0] * 5, [2.0] * 5], [[2.0] * 5, [4.0] * 5]
    assert crossed_interval(arm, against, [1] * 5, lambda a, b: b - a) == (1.0, 2.0)


def test_a_crossed_interval_weighs_rows_by_their_tokens():
    low, high = crossed_interval([[10.0, 1.0]], [[20.0, 1.0]], [10, 1], lambda a, b: b - a)
    assert (low, high) == (0.0, 1.0)  # the draws of two rows: both the one, both the other, or one of each


def test_rows_that_differ_have_no_crossed_interval():
    with pytest.raises(ValueError, match="same rows"):
        crossed_interval([[1.0]], [[1.0, 2.0]], [1], lambda a, b: b - a)
