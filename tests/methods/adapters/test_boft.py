"""BOFT's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters import boft
from lrft.methods.adapters.boft import BOFT
from lrft.methods.adapters.oft import OFT
from lrft.methods.quant.none import Dense


def make(block_size=4, butterfly_factor=2, out=24, width=32, size=0.5, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = BOFT.Config(method="boft", block_size=block_size, butterfly_factor=butterfly_factor, **settings)
    adapter = BOFT(config, Site("a", width, out))
    with torch.no_grad():
        adapter.Q.normal_(std=size)
        adapter.g.add_(size * torch.randn(out))
    return Adapted(Dense(weight, torch.randn(out)), adapter), weight


@pytest.fixture
def boft_layer(monkeypatch):
    """PEFT's module of the layer's code, its CUDA extension stood in for by block_diag."""
    pytest.importorskip("peft")
    from peft.tuners.boft import layer

    def blocks(x):
        return torch.stack([torch.block_diag(*one) for one in x])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", SimpleNamespace(apply=blocks))
    return layer


@pytest.mark.parametrize(("block_size", "factors"), [(4, 1), (4, 2), (4, 3), (2, 4), (3, 1)])
def test_it_is_pefts_with_pefts_gradients(boft_layer, in_peft, block_size, factors):
    site, weight = make(block_size, factors, width=48)
    site.base.bias = None
    theirs = in_peft(site, weight, "BOFTConfig")
    layer = theirs.base_model.model[0]
    R, s = layer.boft_R["default"], layer.boft_s["default"]
    R.data.copy_(site.adapter.Q)
    s.data.copy_(site.adapter.g[:, None])
    x, seed = torch.randn(2, 5, 48, requires_grad=True), torch.randn(2, 5, 24)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    (dx,) = torch.autograd.grad((theirs(x) * seed).sum(), x, retain_graph=True)
    (theirs(x) * seed).sum().backward()
    x.grad = None
    (site(x) * seed).sum().backward()
    torch.testing.assert_close(x.grad, dx, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(site.adapter.Q.grad, R.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(site.adapter.g.grad, s.grad[:, 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-4, rtol=1e-5
    )


def test_without_gains_rows_keep_norms_and_angles_and_each_sees_the_inputs_of_its_group():
    site, weight = make(butterfly_factor=3)
    with torch.no_grad():
        site.adapter.g.fill_(1)
    merged = site.merged_weight()
    torch.testing.assert_close(merged @ merged.mT, weight @ weight.mT, atol=1e-4, rtol=1e-5)
    one = torch.zeros(24, 32)
    one[0, 5] = 1
    reached = site.adapter.delta_weight(one)[0].abs() > 1e-7
    assert reached[:16].all() and not reached[16:].any()


def test_one_factor_without_gains_is_oft():
    site, weight = make(butterfly_factor=1)
    oft = OFT(OFT.Config(method="oft", block_size=4), site.adapter.site)
    S = (site.adapter.Q[0] - site.adapter.Q[0].mT) / 2
    with torch.no_grad():
        site.adapter.g.fill_(1)
        oft.q.copy_(S[:, *torch.triu_indices(4, 4, 1)])
    torch.testing.assert_close(
        site.adapter.delta_weight(weight), oft.delta_weight(weight), atol=1e-5, rtol=1e-5
    )


def test_factors_that_are_multiplied_first_are_those_that_act_one_after_another(monkeypatch):
    x, found = torch.randn(5, 32), []
    for most in (16, 8):  # of 16 inputs that an output depends on
        monkeypatch.setattr(boft, "FOLDED", most)
        site, _ = make(butterfly_factor=3)
        given = x.clone().requires_grad_()
        y = site(given)
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, *site.adapter.parameters()])])
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factors", [1, 3])
def test_x_and_the_outputs_are_kept_and_nothing_of_a_factor(factors):
    site, _ = make(butterfly_factor=factors)
    x, kept = torch.randn(1000, 32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert sorted(size for size in kept if size >= 2000) == [1000 * 24, 1000 * 32]


def test_dropout_leaves_out_whole_blocks_of_one_factor():
    site, _ = make(dropout=0.5)
    turns = site.adapter.turns()
    left = (site.adapter._dropped(turns) != 0).any(-1).any(-1)
    assert sorted(left.sum(1).tolist()) == [4, 8]
    assert torch.equal(site.adapter.eval()._dropped(turns), turns)


def test_the_published_count_on_llama_3_2_3b():
    config = BOFT.Config(method="boft", block_size=4, butterfly_factor=1)
    assert 28 * sum(BOFT.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 802_816


@pytest.mark.parametrize(
    ("width", "settings", "remedy"),
    [
        (20, {}, "use block_size 2"),
        (30, {"block_size": 3}, "butterfly_factor 1"),
        (30, {"butterfly_factor": 1}, "3"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_with_what_does(width, settings, remedy):
    with pytest.raises(ValueError, match=remedy):
        make(width=width, **settings)


def test_peft_has_a_form_for_one_factor_alone():
    holds = BOFT.peft.holds
    assert holds(make(butterfly_factor=1)[0].adapter) and not holds(make()[0].adapter)
