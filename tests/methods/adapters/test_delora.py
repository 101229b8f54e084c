"""DeLoRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.delora import DeLoRA
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16, moved=True, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = DeLoRA(DeLoRA.Config(method="delora", rank=rank, **settings), Site("a", width, out))
    adapter.start(weight)
    if moved:
        with torch.no_grad():
            adapter.B.normal_()
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize("moved", [True, False])
def test_it_is_pefts_with_pefts_gradients(in_peft, moved):
    site, weight = make(moved=moved)
    theirs = in_peft(site, weight, "DeloraConfig")
    layer, names = theirs.base_model.model[0], type(site.adapter).peft.names
    torch.testing.assert_close(layer.delora_w_norm["default"], site.adapter.norms)
    assert (
        layer.delora_lambda["default"] == site.adapter.strength == 15 and not layer.delora_B["default"].any()
    )
    for name in ("A", "B"):
        getattr(layer, names[name])["default"].data.copy_(getattr(site.adapter, name))
    x, seed = torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    (site(x) * seed).sum().backward()
    (theirs(x) * seed).sum().backward()
    for name in ("A", "B", "strength"):
        their = getattr(layer, names[name])["default"].grad
        torch.testing.assert_close(getattr(site.adapter, name).grad, their, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_strength_bounds_the_change_however_large_the_factors(size):
    site, weight = make(bound=2.0)
    with torch.no_grad():
        site.adapter.B.mul_(size)
        site.adapter.A.mul_(size)
    relative = site.adapter.delta_weight(weight) / weight.norm(dim=0)
    assert 0.1 < relative.norm() <= 2.0
    torch.testing.assert_close(relative, make(bound=2.0)[0].adapter.delta_weight(weight) / weight.norm(dim=0))


def test_the_norms_are_saved_since_the_change_is_made_of_them():
    site, weight = make()
    other, _ = make(moved=False)
    other.adapter.start(3 * weight)
    other.adapter.load_state_dict(site.adapter.state_dict())
    assert torch.equal(other.adapter.delta_weight(weight), site.adapter.delta_weight(weight))


def test_the_published_count_of_rank_32_on_llama_3_2_3b():
    config = DeLoRA.Config(method="delora", rank=32)
    assert 28 * sum(DeLoRA.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 9_175_096


def test_dropout_acts_on_the_update_alone():
    site, weight = make(dropout=0.5)
    x = torch.randn(6, 16)
    assert not torch.allclose(site(x), site(x.clone()))
    with torch.no_grad():
        site.adapter.B.zero_()
    torch.testing.assert_close(site(x), F.linear(x, weight))
