"""SLTrain's own statements, and autograd through its weight in full."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.frozen import Absent
from lrft.core.params import Site
from lrft.methods.adapters.sltrain import SLTrain


def make(rank=4, out=24, width=16, density=0.1, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    config = SLTrain.Config(method="sltrain", rank=rank, density=density, alpha=8.0, **settings)
    adapter = SLTrain(config, Site("a", width, out))
    adapter.start(weight)
    return Adapted(Absent(weight), adapter), weight


def test_the_start_is_the_sparse_part_alone_and_owes_nothing_to_the_weight_that_stood_there():
    site, _ = make()
    own = site.adapter.own_weight()
    assert (own != 0).sum() == int(0.1 * 24 * 16)
    assert own.abs().max() <= 1 / 4 and torch.equal(own, site.adapter.sparse())


def test_gradients_are_those_of_the_weight_in_full_gathered_at_the_places():
    site, _ = make()
    adapter = site.adapter
    with torch.no_grad():
        adapter.B.normal_()
    x, seed = torch.randn(5, 16), torch.randn(5, 24)
    W = adapter.own_weight().detach().requires_grad_()
    (F.linear(x, W) * seed).sum().backward()
    (site(x) * seed).sum().backward()
    torch.testing.assert_close(adapter.values.grad, W.grad.flatten()[adapter.places.long()])
    torch.testing.assert_close(adapter.B.grad, 2 * W.grad @ adapter.A.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter.A.grad, 2 * adapter.B.mT @ W.grad, atol=1e-4, rtol=1e-4)


def test_the_scale_acts_on_the_low_rank_part_alone():
    site, _ = make()
    adapter = site.adapter
    with torch.no_grad():
        adapter.B.normal_()
    low_rank = adapter.own_weight() - adapter.sparse()
    torch.testing.assert_close(low_rank, 2 * adapter.B @ adapter.A, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_rank(low_rank.detach(), atol=1e-4) == 4
    assert torch.linalg.matrix_rank(make(density=0.5)[0].adapter.own_weight()) == 16


def test_places_are_sorted_distinct_and_never_move():
    site, _ = make()
    places = site.adapter.places.clone()
    assert places.dtype == torch.int32 and (places[1:] > places[:-1]).all()
    optimizer = torch.optim.AdamW(site.adapter.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        site(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    assert torch.equal(site.adapter.places, places)
    outside = torch.ones(24 * 16, dtype=torch.bool)
    outside[places.long()] = False
    assert not site.adapter.sparse().flatten()[outside].any()
    assert torch.equal(make()[0].adapter.places, places)  # the same seed, the same places


def test_the_count_is_the_papers_44_million():
    """43,529,851 without rounding; the authors' code rounds down at every matrix, and so does this."""
    config = SLTrain.Config(method="sltrain", rank=128, density=0.03)
    layer = 4 * [(512, 512)] + [(1376, 512)] * 2 + [(512, 1376)]
    own = 8 * sum(SLTrain.count(config, Site("a", width, out)) for out, width in layer)
    assert own + 2 * 32000 * 512 + 17 * 512 == 43_529_832


def test_the_entries_are_counted_as_in_the_authors_code_where_rounding_errors_decide():
    assert len(make(out=100, width=44, density=0.03)[0].adapter.values) == int(0.03 * (100 * 44)) == 132


def test_no_weight_is_kept_for_the_backward_pass():
    site, _ = make(out=64, width=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(torch.randn(2, 64))
    assert max(kept) < 64 * 64


def test_a_density_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="use at least"):
        make(density=0.001)
