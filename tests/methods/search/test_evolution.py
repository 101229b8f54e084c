"""Evolution: generations, what children inherit, and that it finds what random draws seldom do."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lrft.core.search import Gene, Known, Trial, best_first
from lrft.registry.axes import SEARCHES
from tests.contracts.test_searches import arms

BITS = tuple(Gene(f"adapter.layers[{at}]", 2) for at in range(24))


def made(seed=0, genes=BITS, **settings):
    return SEARCHES.get("evolution")(SEARCHES.settings("evolution", **settings), genes, seed)


def evolved(search, count, loss):
    chosen = []
    while len(chosen) < count:
        trials = [Trial(genes, loss(genes)) for genes in chosen[: search.known(len(chosen))]]
        chosen.append(search.propose(len(chosen), Known(tuple(chosen), trials, lambda genes: True)))
    return chosen


def of_ones(genes):
    return (-float(sum(genes)), 0.0)


def test_a_generation_waits_for_those_before_it_alone():
    search = made(population=4, parents=2)
    assert [search.known(index) for index in range(10)] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert arms(search, 4) == [search.draw(search.rng(index)) for index in range(4)]


def test_children_are_crossed_from_two_of_the_best_or_mutated_from_one():
    """With parents of zeros and of ones, a crossed child mixes them and a mutated one is near to one of them."""
    zeros, ones, bad = (0,) * 24, (1,) * 24, (0, 1) * 12
    search = made(population=4, parents=2, mutation=0.1)
    loss = {zeros: (0.0, 0.0), ones: (0.0, 1.0), bad: (5.0, 0.0), (1, 0) * 12: None}
    known = Known(tuple(loss), [Trial(genes, of) for genes, of in loss.items()], lambda genes: True)
    assert [trial.genes for trial in best_first(known.trials)] == [zeros, ones, bad, (1, 0) * 12]
    crossed, mutated = search.propose(4, known), search.propose(5, known)
    assert 4 < sum(crossed) < 20 and min(sum(mutated), 24 - sum(mutated)) in range(1, 7)


def test_it_finds_more_ones_than_random_draws_of_the_same_number():
    best = min(of_ones(genes) for genes in evolved(made(), 100, of_ones))
    drawn = SEARCHES.get("random")(SEARCHES.settings("random"), BITS, 0)
    assert best < min(of_ones(genes) for genes in arms(drawn, 100)) and best[0] <= -21


def test_more_parents_than_arms_are_refused():
    with pytest.raises(ValidationError, match="parents: 5 are more than the 4"):
        made(population=4, parents=5)
