"""KaSA's own statements, and PEFT's variant on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.kasa import KaSA
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16, moved=True, sites=1, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = KaSA.Config(method="kasa", rank=rank, **settings)
    site = Site("a", width, out)
    adapter = KaSA.at(config, site, KaSA.shared(config, {str(k): site for k in range(sites)}, 0))
    adapter.start(weight)
    if moved:
        with torch.no_grad():
            adapter.B.normal_()
    return Adapted(Dense(weight), adapter), weight


@pytest.fixture
def in_pefts_variant():
    peft = pytest.importorskip("peft")

    def given(site, weight):
        keys = dict(site.adapter.peft.keys(site.adapter.config, False))
        assert keys.pop("peft_type") == "LORA"
        keys["kasa_config"] = peft.KasaConfig(**keys["kasa_config"])
        config = peft.LoraConfig(target_modules=["0"], **keys)
        model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        with torch.no_grad():
            model[0].weight.copy_(weight)
        theirs = peft.get_peft_model(model, config)
        layer = theirs.base_model.model[0]
        layer.lora_A["default"].weight.data.copy_(site.adapter.A)
        layer.lora_B["default"].weight.data.copy_(site.adapter.B)
        layer.lora_diag["default"].data.copy_(site.adapter.sigma)
        return theirs

    return given


@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24)])
@pytest.mark.parametrize("moved", [True, False])
def test_it_is_pefts_on_the_truncated_weight(in_pefts_variant, out, width, moved):
    site, weight = make(out=out, width=width, moved=moved)
    theirs = in_pefts_variant(site, weight)
    x = torch.randn(2, 5, width)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-5, rtol=1e-5
    )


def test_the_penalty_is_pefts_over_the_number_of_sites_with_its_gradients(in_pefts_variant):
    site, weight = make(beta=0.3, gamma=0.2, sites=5)
    theirs = in_pefts_variant(site, weight)
    loss = theirs.base_model._get_kasa_loss()
    torch.testing.assert_close(5 * site.adapter.penalty(), loss)
    (5 * site.adapter.penalty()).backward()
    loss.backward()
    layer = theirs.base_model.model[0]
    torch.testing.assert_close(site.adapter.A.grad, layer.lora_A["default"].weight.grad)
    torch.testing.assert_close(site.adapter.B.grad, layer.lora_B["default"].weight.grad)
    torch.testing.assert_close(site.adapter.sigma.grad, layer.lora_diag["default"].grad)


@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24)])
def test_at_step_0_the_smallest_singular_values_are_gone_and_the_others_stay(out, width):
    site, weight = make(out=out, width=width, moved=False)
    before, after = (torch.linalg.svdvals(matrix) for matrix in (weight, site.merged_weight()))
    torch.testing.assert_close(after[:12], before[:12], atol=1e-5, rtol=1e-5)
    assert after[12:].abs().max() < 1e-5 < before[12:].min()


def test_the_frozen_factors_are_saved_and_a_restart_takes_nothing_more():
    site, _ = make()
    other, _ = make(moved=False)
    other.adapter.start(torch.randn(24, 16))
    other.adapter.load_state_dict(site.adapter.state_dict())
    assert torch.equal(other.adapter.change(), site.adapter.change())
    x = torch.randn(3, 16)
    before = site(x)
    site.fold()
    torch.testing.assert_close(site(x), before, atol=1e-4, rtol=1e-5)
    assert not site.adapter.change().any()


def test_dropout_leaves_the_missing_directions_alone():
    site, _ = make(dropout=0.5)
    x = torch.randn(6, 16)
    assert not torch.allclose(site(x), site(x.clone()))
    with torch.no_grad():
        site.adapter.B.zero_()
    torch.testing.assert_close(site(x), F.linear(x, site.merged_weight()), atol=1e-4, rtol=1e-5)


def test_what_is_taken_off_keeps_no_activation():
    site, _ = make()
    x, kept = torch.randn(1000, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert sorted(size for size in kept if size >= 1000) == [1000 * 4, 1000 * 16]


def test_it_counts_a_singular_value_a_component():
    assert KaSA.count(KaSA.Config(method="kasa", rank=8), Site("a", 768, 768)) == 8 * (768 + 768) + 8


def test_a_rank_that_leaves_nothing_is_refused_with_what_works():
    with pytest.raises(ValueError, match="use at most 15"):
        make(rank=16)
