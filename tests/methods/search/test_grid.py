"""Grid search: the product of the values in the order of `lrft sweep`, ranges at even places."""

import itertools

import pytest

from lrft.core.search import Gene
from lrft.registry.axes import SEARCHES
from tests.contracts.test_searches import arms


def tried(*genes, **settings):
    return arms(SEARCHES.get("grid")(SEARCHES.settings("grid", **settings), genes, 0), 10**6)


def test_every_combination_is_tried_once_the_last_key_changing_fastest():
    found = tried(Gene("a", 3, ordered=True), Gene("b", 2), Gene("c[0]", 2))
    assert found == list(itertools.product(range(3), range(2), range(2)))


@pytest.mark.parametrize(
    ("gene", "points", "expected"),
    [
        (Gene("lr", 0, True, 1e-4, 1e-1, log=True), 4, [1e-4, 1e-3, 1e-2, 1e-1]),
        (Gene("dropout", 0, True, 0.0, 0.2), 3, [0.0, 0.1, 0.2]),
        (Gene("rank", 0, True, 1, 3, whole=True), 5, [1, 2, 3]),
    ],
)
def test_a_range_is_tried_at_even_places_and_at_no_number_twice(gene, points, expected):
    assert [value for (value,) in tried(gene, points=points)] == expected
