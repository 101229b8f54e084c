"""Random search: seeds, the spread of what is drawn, and numbers as short as recipes are written."""

import math

from lrft.core.search import Gene
from lrft.registry.axes import SEARCHES
from tests.contracts.test_searches import arms


def drawn(seed, *genes, count=400):
    return arms(SEARCHES.get("random")(SEARCHES.settings("random"), genes, seed), count)


def test_another_seed_is_another_sequence_and_a_longer_one_begins_like_a_shorter():
    rate = Gene("optimizer.lr", 0, True, 1e-5, 1e-1, log=True)
    first = drawn(0, rate, count=8)
    assert first == drawn(0, rate, count=20)[:8] and first != drawn(1, rate, count=8)


def test_a_logarithmic_range_is_even_in_the_logarithm_and_a_plain_one_is_not():
    """Of 1e-4 ... 1 half the draws lie below 1e-2, where a plain range has one in a hundred."""
    log, plain = Gene("a", 0, True, 1e-4, 1.0, log=True), Gene("b", 0, True, 1e-4, 1.0)
    found = drawn(0, log, plain)
    share = [sum(genes[place] < 1e-2 for genes in found) / len(found) for place in (0, 1)]
    assert 0.4 < share[0] < 0.6 and share[1] < 0.05
    assert all(float(f"{value:.3g}") == value for genes in found for value in genes)


def test_options_are_equally_likely_and_whole_ranges_have_both_ends():
    option, whole = Gene("a", 4), Gene("b", 0, True, 1, 200, log=True, whole=True)
    found = drawn(3, option, whole, count=300)
    counts = [sum(genes[0] == at for genes in found) for at in range(4)]
    assert all(abs(count - 75) < 4 * math.sqrt(75) for count in counts)
    assert {1, 2, 3} <= {genes[1] for genes in found} and max(genes[1] for genes in found) > 150
