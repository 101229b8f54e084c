"""Intervals and tests beside published and enumerated values."""

import math

import pytest

from lrft.evaluation.intervals import bootstrap, mcnemar, quantile, wilson


def test_wilson_at_values_that_are_known():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((1 - 0.2775, 1.0), abs=1e-4)


def test_mcnemar_is_the_binomial_test_of_a_coin():
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert mcnemar(6, 0) == mcnemar(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def test_a_bootstrap_of_equal_rows_is_that_value_and_of_others_holds_their_mean():
    assert bootstrap([3.0] * 5, lambda rows: sum(rows) / len(rows)) == (3.0, 3.0)
    rows = [0.0, 1.0] * 50
    low, high = bootstrap(rows, lambda some: sum(some) / len(some))
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert all(map(math.isnan, bootstrap([1], lambda rows: math.nan)))


def test_a_quantile_is_one_of_the_values():
    assert quantile([3, 1, 2, 4], 0.5) == 2 and quantile([3, 1, 2, 4], 1) == 4
