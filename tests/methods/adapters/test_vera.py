"""VeRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.vera import VeRA
from lrft.methods.quant.none import Dense


def make(rank=8, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = VeRA(VeRA.Config(method="vera", rank=rank, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.v.normal_()
    return Adapted(Dense(weight), adapter), weight


def test_the_vectors_scale_the_rows_of_the_frozen_pair():
    site, weight = make()
    adapter, (shared,) = site.adapter, site.adapter.bases
    with torch.no_grad():
        adapter.u.normal_()
    expected = torch.diag(adapter.v) @ shared.B @ torch.diag(adapter.u) @ shared.A
    torch.testing.assert_close(adapter.delta_weight(weight), expected, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_rank(expected) == 8


def test_the_first_step_moves_v_alone():
    site, _ = make()
    site.adapter.reset()
    assert (site.adapter.u == 0.1).all()
    site(torch.randn(3, 16)).square().sum().backward()
    assert site.adapter.v.grad.abs().min() > 0 and not site.adapter.u.grad.any()


@pytest.mark.parametrize(
    ("rank", "layers", "width", "published"), [(1024, 12, 768, 43_008), (256, 24, 1024, 61_440)]
)
def test_counts_are_those_of_the_papers_table_for_roberta(rank, layers, width, published):
    config = VeRA.Config(method="vera", rank=rank)
    assert 2 * layers * VeRA.count(config, Site("a", width, width)) == published


def test_all_sites_cut_from_one_pair_drawn_for_the_widest():
    config = VeRA.Config(method="vera", rank=8)
    sites = {"a": Site("a", 16, 24), "b": Site("b", 40, 12)}
    torch.manual_seed(3)
    shared = VeRA.shared(config, sites, 0)
    assert shared.A.shape == (8, 40) and shared.B.shape == (24, 8)
    assert (
        0.9 < shared.A.abs().max() / (6 / 40) ** 0.5 <= 1 and 0.9 < shared.B.abs().max() / (6 / 8) ** 0.5 <= 1
    )
    torch.manual_seed(3)
    assert torch.equal(VeRA.shared(config, sites, 0).B, shared.B)
    narrow = VeRA.at(config, sites["b"], shared)
    with torch.no_grad():
        narrow.v.fill_(1.0)
    expected = 0.1 * shared.B[:12] @ shared.A
    torch.testing.assert_close(narrow.delta_weight(torch.zeros(12, 40)), expected, atol=1e-5, rtol=1e-4)
    assert narrow.state_dict().keys() == {"u", "v"}


def test_it_is_pefts(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "VeraConfig")
    layer = theirs.base_model.model[0]
    for name, tensor in site.adapter.bases[0].peft_tensors().items():
        their = getattr(layer, name)
        assert their["default"].shape == tensor.shape
        torch.testing.assert_close(their["default"].std(), tensor.std(), atol=0.05, rtol=0.1)
        their["default"].copy_(tensor)
    layer.vera_lambda_b["default"].data.copy_(site.adapter.v)
    layer.vera_lambda_d["default"].data.copy_(site.adapter.u)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_only_the_rank_wide_product_is_kept_for_the_backward_pass():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 8


def test_a_base_in_half_precision_uses_the_pair_in_half_precision_once_cast():
    site, _ = make()
    (shared,) = site.adapter.bases
    assert shared.cast("A", torch.bfloat16) is shared.cast("A", torch.bfloat16)
    assert shared.cast("A", torch.float32) is shared.A
    with torch.no_grad():
        shared.A.add_(1)
    assert torch.equal(shared.cast("A", torch.bfloat16), shared.A.bfloat16())


def test_dropout_acts_on_the_update_alone():
    site, weight = make(dropout=0.5)
    x = torch.randn(6, 16)
    assert not torch.allclose(site(x), site(x.clone()))
    with torch.no_grad():
        site.adapter.v.zero_()
    torch.testing.assert_close(site(x), F.linear(x, weight))
