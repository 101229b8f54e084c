"""RoAd's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.road import RoAd
from lrft.methods.quant.none import Dense
from tests.kept import keeping

VARIANTS = pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])


def make(variant="road_1", group_size=4, out=24, width=16, dtype=torch.float32, size=0.5):
    torch.manual_seed(0)
    weight, bias = torch.randn(out, width), torch.randn(out)
    config = RoAd.Config(method="road", variant=variant, group_size=group_size)
    adapter = RoAd(config, Site("a", width, out, has_bias=True))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return Adapted(Dense(weight.to(dtype), bias.to(dtype)), adapter), weight


@VARIANTS
def test_it_is_pefts_layer_forward_and_merged(variant):
    peft = pytest.importorskip("peft")
    site, weight = make(variant, group_size=8)
    model = nn.Sequential(nn.Linear(16, 24))
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[0].bias.copy_(site.base.bias)
    keys = {k: v for k, v in RoAd.peft.keys(site.adapter.config, False).items() if k != "peft_type"}
    layer = peft.get_peft_model(model, peft.RoadConfig(target_modules=["0"], **keys)).base_model.model[0]
    for name, tensor in RoAd.peft.tensors_of(site.adapter).items():
        held = getattr(layer, name)["default"]
        assert held.shape == tensor.shape
        held.data.copy_(tensor)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), layer(x), atol=1e-5, rtol=1e-5)
    layer.merge()
    torch.testing.assert_close(site.merged_weight(), layer.get_base_layer().weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(site.merged_bias(), layer.get_base_layer().bias, atol=1e-5, rtol=1e-5)


def test_one_angle_turns_a_pair_of_neighbours_by_it():
    site, weight = make(group_size=2)
    angle, scale = site.adapter.theta[3], site.adapter.alpha[3]
    turn = scale * torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    torch.testing.assert_close(site.merged_weight()[6:8], turn @ weight[6:8])


def test_without_stretching_every_pair_keeps_its_norm():
    site, weight = make()
    with torch.no_grad():
        site.adapter.alpha.fill_(1)
    pairs = [w.view(-1, 2, 2, 16).square().sum(1) for w in (site.merged_weight(), weight)]
    torch.testing.assert_close(*pairs)


def test_of_a_token_what_is_turned_is_kept_once_in_its_own_precision():
    site, _ = make(dtype=torch.bfloat16)
    own = {b.data_ptr() for b in site.base.buffers()}
    with keeping() as kept:
        y = site(torch.randn(4096, 16).bfloat16().requires_grad_())
    del y
    large = [size for place, size in kept.items() if place not in own and size > 4096]
    assert large == [4096 * 24 * 2]


@pytest.mark.parametrize(("variant", "published"), [("road_2", 229_376), ("road_1", 114_688)])
def test_the_count_on_llama_3_2_3b(variant, published):
    config = RoAd.Config(method="road", variant=variant)
    assert 28 * sum(RoAd.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == published


def test_a_group_that_does_not_fit_is_refused_with_the_nearest_that_does():
    with pytest.raises(ValueError, match="group_size 10 does not divide the 24 outputs; use 8"):
        make(group_size=10)
