"""SHiRA's own statements, and PEFT's mask and layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.shira import SHiRA
from lrft.methods.quant.none import Dense


def make(rank=2, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = SHiRA(SHiRA.Config(method="shira", rank=rank, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.values.normal_()
    return Adapted(Dense(weight), adapter), weight


def test_as_many_entries_change_as_a_lora_has_numbers_and_the_rank_is_higher():
    site, _ = make()
    change = site.adapter.change()
    assert change.count_nonzero() == 2 * (24 + 16)
    assert torch.linalg.matrix_rank(change) > 8


def test_its_gradient_is_the_full_one_at_its_places():
    site, _ = make()
    weight = site.merged_weight().requires_grad_(True)
    x = torch.randn(5, 16)
    site(x).square().sum().backward()
    F.linear(x, weight).square().sum().backward()
    own = weight.grad.flatten()[site.adapter.places.long()]
    torch.testing.assert_close(site.adapter.values.grad, own, atol=1e-4, rtol=1e-4)


def test_places_are_of_the_seed_alone_where_there_is_one():
    (one, _), (two, _) = make(mask_seed=7), make(mask_seed=7)
    assert torch.equal(one.adapter.places, two.adapter.places)
    torch.manual_seed(5)
    other = SHiRA(SHiRA.Config(method="shira", rank=2), one.adapter.site)
    again = SHiRA(SHiRA.Config(method="shira", rank=2), one.adapter.site)
    assert not torch.equal(other.places, again.places)


def test_a_reset_keeps_the_places():
    site, _ = make()
    before = site.adapter.places.clone()
    site.adapter.reset()
    assert torch.equal(site.adapter.places, before) and not site.adapter.values.any()


def test_places_are_saved_in_32_bits():
    assert make()[0].adapter.state_dict()["places"].dtype == torch.int32


def test_the_count_is_pefts_for_llama_3_2_3b():
    config = SHiRA.Config(method="shira", rank=32)
    assert 28 * sum(SHiRA.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 9_175_040


def test_places_and_function_are_pefts():
    peft = pytest.importorskip("peft")
    site, weight = make(mask_seed=42)
    keys = dict(site.adapter.peft.keys(site.adapter.config, False))
    keys.pop("peft_type")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    model[0].weight.data.copy_(weight)
    theirs = peft.get_peft_model(model, peft.ShiraConfig(target_modules=["0"], **keys))
    layer = theirs.base_model.model[0]
    tensors = site.adapter.peft.tensors(site.adapter, None)
    assert torch.equal(layer.shira_indices["default"], tensors["places"])
    layer.shira_weight["default"].data.copy_(tensors["values"])
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_more_entries_than_there_are_is_refused():
    with pytest.raises(ValueError, match="rank 10 asks for 400 entries of 384; use at most 9"):
        make(rank=10)
