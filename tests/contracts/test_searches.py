"""What every search keeps to: its arms follow from seed, index and earlier results alone, are new and are possible."""

from __future__ import annotations

import pytest

from lrft.core.search import Gene, Known, Trial
from lrft.registry.axes import SEARCHES
from lrft.registry.errors import MissingExtra

GENES = (
    Gene("adapter.rank", 4, ordered=True),
    Gene("adapter", 3),
    Gene("optimizer.lr", 0, True, 1e-4, 1e-1, log=True),
    Gene("adapter.alpha", 0, True, 2, 40, whole=True),
    Gene("adapter.layers[0]", 2),
)
ARMS = 10  # of `bayesian`, all are drawn: what it models is tested with it


def made(name, seed=0, genes=GENES):
    try:
        return SEARCHES.get(name)(SEARCHES.settings(name), genes, seed)
    except MissingExtra as missing:
        pytest.skip(str(missing))


def losses(genes):
    """Small at a rate of 0.01 and a high rank, which costs most; some diverge."""
    return None if genes[1] == 2 and genes[0] == 0 else (abs(genes[2] - 0.01) - genes[0], float(genes[0]))


def arms(search, count, begin=(), possible=lambda genes: True):
    chosen = list(begin)
    while len(chosen) < count:
        seen = search.known(len(chosen))
        assert 0 <= seen <= len(chosen)
        trials = [Trial(genes, losses(genes)) for genes in chosen[:seen]]
        found = search.propose(len(chosen), Known(tuple(chosen), trials, possible))
        if found is None:
            break
        chosen.append(found)
    return chosen


def is_within(gene, value):
    if gene.options:
        return value in range(gene.options)
    return gene.low <= value <= gene.high and (isinstance(value, int) or not gene.whole)


@pytest.mark.parametrize("name", SEARCHES.names())
def test_a_search_that_was_cut_off_proposes_what_it_would_have(name):
    whole = arms(made(name), ARMS)
    assert len(whole) == ARMS and len(set(whole)) == ARMS
    for cut in (1, ARMS // 2, ARMS - 1):
        assert arms(made(name), ARMS, whole[:cut]) == whole
    for genes in whole:
        assert all(is_within(gene, value) for gene, value in zip(GENES, genes, strict=True))


@pytest.mark.parametrize("name", SEARCHES.names())
def test_what_is_no_recipe_is_not_proposed_and_a_space_has_an_end(name):
    def possible(genes):
        return genes[0] != genes[1]

    few = (Gene("a", 3, ordered=True), Gene("b", 3))
    found = arms(made(name, genes=few), 9, possible=possible)
    assert sorted(found) == [(a, b) for a in range(3) for b in range(3) if a != b]
