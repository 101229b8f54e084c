"""TIES, DARE, magnitude pruning and sparse sums: PEFT's own functions on the same numbers, and what the papers say."""

from __future__ import annotations

import pytest
import torch

from lrft.core.combine import Part
from tests.methods.combine.made import change, method, part

PARTS = [part(seed, scale=1 + seed) for seed in range(3)]
CHANGES = [one.change() for one in PARTS]
WEIGHTS = [0.5, 1.0, -0.25]


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft.utils.merge_utils")


@pytest.mark.parametrize(("elect", "theirs"), [("mass", "total"), ("count", "frequency")])
def test_ties_of_every_layer_is_that_of_peft(peft, elect, theirs):
    ours = change("ties", PARTS, WEIGHTS, density=0.4, elect=elect, trim="site")
    wanted = peft.ties(CHANGES, torch.tensor(WEIGHTS), 0.4, theirs)
    torch.testing.assert_close(ours, wanted)
    assert (ours == 0).any() and not torch.equal(ours, change("ties", PARTS, WEIGHTS, density=1.0))


def test_pruning_by_magnitude_is_that_of_peft(peft):
    torch.testing.assert_close(
        change("magnitude_prune", PARTS, WEIGHTS, density=0.4),
        peft.magnitude_prune(CHANGES, torch.tensor(WEIGHTS), 0.4),
    )


@pytest.mark.parametrize(
    ("elect", "theirs"), [("none", "dare_linear"), ("mass", "dare_ties"), ("count", "dare_ties")]
)
def test_dare_with_the_same_draws_is_that_of_peft(peft, elect, theirs):
    made = method("dare", WEIGHTS, seed=3, density=0.4, elect=elect)
    torch.manual_seed(made.draws("layer").initial_seed())
    more = () if elect == "none" else ({"mass": "total", "count": "frequency"}[elect],)
    wanted = getattr(peft, theirs)(CHANGES, torch.tensor(WEIGHTS), 0.4, *more)
    torch.testing.assert_close(made.combine("layer", PARTS), wanted)


def test_dare_is_right_on_average_and_layers_and_seeds_have_draws_of_their_own():
    found = [change("dare", PARTS[:1], [1.0], seed=seed, density=0.5) for seed in range(400)]
    error = (torch.stack(found).mean(0) - CHANGES[0]).norm() / CHANGES[0].norm()
    assert error < 3 / 400**0.5
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], change("dare", PARTS[:1], [1.0], site="other", density=0.5))


def test_ties_over_the_model_keeps_entries_where_they_are_large():
    """The paper trims a whole task vector: a layer with small changes keeps none."""
    large, small = Part(torch.ones(1, 5), torch.ones(7, 1)), Part(torch.ones(1, 5), torch.full((7, 1), 1e-3))
    sites = {"large": [large, large], "small": [small, small]}
    made = method("ties", density=0.5)
    made.look(sites)
    assert torch.equal(made.combine("large", sites["large"]), large.change())
    assert not made.combine("small", sites["small"]).any()


def test_ties_of_twins_is_either_of_them_and_opposites_follow_the_elected_sign():
    torch.testing.assert_close(change("ties", PARTS[:1] * 3, density=1.0), CHANGES[0])
    one, other = (Part(torch.ones(1, 1), torch.tensor([[value]])) for value in (3.0, -1.0))
    assert change("ties", [one, other], density=1.0).item() == 3.0
    assert change("ties", [one, other], density=1.0, scale=0.5).item() == 1.5


def test_sparse_differences_add_up_and_disjoint_ones_do_not_interact():
    left, right = torch.zeros(7, 5), torch.zeros(7, 5)
    left[0, 0], right[1, 1] = 2.0, -3.0
    parts = [Part(torch.zeros(0, 5), torch.zeros(7, 0), dense=dense) for dense in (left, right)]
    assert torch.equal(change("lt_sft", parts), left + right)
    assert int(change("lt_sft", PARTS[:1], share=0.2).count_nonzero()) == 7  # a fifth of 35
