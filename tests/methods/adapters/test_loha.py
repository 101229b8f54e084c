"""LoHa's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.loha import LoHa
from lrft.methods.quant.none import Dense
from tests.methods.adapters.dropped_whole import check_dropped_or_left

NAMES = ("A1", "B1", "A2", "B2")


def make(rank=2, out=24, width=16, **settings):
    """At the default shape the r^2 components are used; with rank 4 the dense change."""
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = LoHa(LoHa.Config(method="loha", rank=rank, **settings), Site("a", width, out))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return Adapted(Dense(weight), adapter), weight


def kept_by(site, tokens):
    x, kept = torch.randn(tokens, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        site(x)
    return kept


@pytest.mark.parametrize(("rank", "thin"), [(2, True), (4, False)])
def test_both_ways_are_pefts_and_have_pefts_gradients(in_peft, rank, thin):
    site, weight = make(rank, alpha=3.0)
    assert site.adapter.thin == thin
    theirs = in_peft(site, weight, "LoHaConfig")
    layer, names = theirs.base_model.model[0], type(site.adapter).peft.names
    for name in NAMES:
        getattr(layer, names[name])["default"].data.copy_(getattr(site.adapter, name))
    x, seed = torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    (site(x) * seed).sum().backward()
    (theirs(x) * seed).sum().backward()
    for name in NAMES:
        their = getattr(layer, names[name])["default"].grad
        torch.testing.assert_close(getattr(site.adapter, name).grad, their, atol=1e-3, rtol=1e-4)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


def test_the_change_has_the_squared_rank_and_its_factors_say_so():
    site, _ = make(rank=3)
    A, B = site.adapter.factors()
    assert A.shape == (9, 16) and torch.linalg.matrix_rank(site.adapter.change()) == 9
    torch.testing.assert_close(B @ A, site.adapter.change(), atol=1e-5, rtol=1e-5)
    assert make(rank=4)[0].adapter.factors() is None


def test_neither_way_keeps_a_hadamard_product():
    assert not {(24, 16), (16, 24)} & {*kept_by(make(rank=4)[0], 5), *kept_by(make(rank=2)[0], 5)}
    assert sum(5 in shape for shape in kept_by(make(rank=4)[0], 5)) == 1  # x
    assert {shape for shape in kept_by(make(rank=2)[0], 5) if 5 in shape} == {(5, 16), (5, 4)}


@pytest.mark.parametrize("rank", [2, 4])
def test_whole_outputs_are_dropped_and_the_gradient_sees_the_same_draw(rank):
    site, weight = make(rank, rank_dropout=0.5)
    x = torch.randn(7, 16, requires_grad=True)
    moved = site(x) - F.linear(x, weight)
    left = moved.abs().sum(0) > 1e-4
    assert 0 < left.sum() < 24
    expected = F.linear(x, site.adapter.change()) * left / left.float().mean()
    torch.testing.assert_close(moved, expected, atol=1e-3, rtol=1e-3)
    ours = torch.autograd.grad(moved.square().sum(), site.adapter.B1)[0]
    theirs = torch.autograd.grad(expected.square().sum(), site.adapter.B1)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-1, rtol=1e-3)
    assert not ours[~left].any()
    torch.testing.assert_close(site.eval()(x), F.linear(x, site.merged_weight()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [2, 4])
def test_the_whole_change_is_dropped_or_left_as_it_is(rank):
    check_dropped_or_left(*make(rank, module_dropout=0.3))


def test_pefts_file_has_the_dropout_of_the_whole_change(in_peft):
    site, weight = make(module_dropout=0.3)
    layer = in_peft(site, weight, "LoHaConfig").base_model.model[0]
    assert layer.module_dropout["default"] == 0.3
    assert site.adapter.skipped and not make()[0].adapter.skipped  # first steps may give it no gradient


@pytest.mark.parametrize(
    ("draw", "zero", "spread"),
    [
        ("kaiming", "A2", {"A1": 1 / (3 * 400) ** 0.5, "B1": 1 / 12**0.5}),
        ("normal", "B2", {"A1": 1, "B1": 0.1}),
    ],
)
def test_the_starts_are_pefts_and_that_of_lycoris(draw, zero, spread):
    torch.manual_seed(0)
    adapter = LoHa(LoHa.Config(method="loha", rank=4, draw=draw), Site("a", 400, 300))
    assert not getattr(adapter, zero).any() and not adapter.change().any()
    for name, std in spread.items():
        assert getattr(adapter, name).detach().std() == pytest.approx(std, rel=0.1)


def test_the_published_count_on_llama_3_2_3b():
    config = LoHa.Config(method="loha", rank=32)
    assert 28 * sum(LoHa.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 18_350_080
