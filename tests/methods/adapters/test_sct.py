"""SCT's own statements: the published count, the authors' module on the same numbers, what merges and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.stages import Tokens
from lrft.methods.adapters.sct import SCT
from lrft.methods.inits.sct import SCTChannels
from lrft.methods.quant.none import Dense
from lrft.methods.signals.output_norm import OutputNorm
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, RecipeError


def make(out=16, width=12, base_bias=True, **settings):
    torch.manual_seed(0)
    base = Dense(torch.randn(out, width), torch.randn(out) if base_bias else None)
    adapter = SCT(SCT.Config(method="sct", **{"share": 0.25, **settings}), Site("a", width, out))
    return Adapted(base, adapter)


def published(site, x):
    """The authors' module behind the layer: a linear layer with a bias on the chosen channels."""
    adapter, y = site.adapter, F.linear(x, site.base.weight(), site.base.bias)
    linear, channels = nn.Linear(len(adapter.channels), len(adapter.channels)), adapter.channels.long()
    with torch.no_grad():
        linear.weight.copy_(adapter.L)
        linear.bias.copy_(torch.zeros(len(channels)) if adapter.bias is None else adapter.bias)
    added = torch.zeros_like(y)
    added[..., channels] = adapter.config.scale * linear(y[..., channels])
    return y + added


def test_the_count_of_a_vit_b_is_the_published_one():
    """0.11M: 96 of 768 channels in 12 layers."""
    config = SCT.Config(method="sct", bias=True)
    assert 12 * SCT.count(config, Site("proj", 768, 768)) == 12 * (96 * 96 + 96) == 111_744


@pytest.mark.parametrize(("base_bias", "bias"), [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_it_is_the_authors_module(base_bias, bias, scale):
    site = make(base_bias=base_bias, bias=bias, scale=scale)
    with torch.no_grad():
        for parameter in site.adapter.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(site(x), published(site, x))


def test_it_merges_as_a_matrix_from_the_left():
    site = make(scale=0.4)
    P = torch.eye(16)[:, site.adapter.channels.long()]
    left = torch.eye(16) + 0.4 * P @ site.adapter.L @ P.mT
    torch.testing.assert_close(site.merged_weight(), left @ site.base.weight())


def test_it_starts_near_the_model_and_not_on_it():
    adapter = make(out=512, width=4, share=0.5).adapter
    assert 0.018 < adapter.L.std() < 0.022 and adapter.L.abs().max() > 0.05
    adapter.reset()
    assert not adapter.L.any()


def test_a_zeroed_matrix_is_the_base():
    site = make(bias=True)
    site.adapter.reset()
    x = torch.randn(5, 12)
    assert torch.equal(site(x), site.base(x))


def test_with_its_own_bias_it_is_refused_at_merge():
    site = make(bias=True)
    with pytest.raises(NotMergeable, match="no change of the weight at a"):
        site.merged_weight()
    with pytest.raises(NotMergeable, match="keep it apart"):
        site.adapter.delta_weight(torch.zeros(16, 12))
    assert "mergeable" in make().adapter.provides


def test_of_a_pass_the_chosen_outputs_alone_are_kept():
    site, kept = make(out=64, width=32, share=0.125), []
    x = torch.randn(7, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    assert sum(t.numel() for t in kept if t.shape[0] == 7) == 7 * 8


def test_the_channels_are_those_largest_over_the_real_tokens():
    outputs = torch.randn(30, 16) * torch.linspace(1, 2, 16).roll(5)
    outputs[20:] = 1e4 * torch.eye(16)[0]  # padding
    signal = OutputNorm()
    for part in (slice(0, 10), slice(10, 30)):
        real = torch.arange(10)
        signal.update(outputs[part], None, Tokens(real, real))
    norms = signal.result()
    torch.testing.assert_close(norms, outputs[:20].norm(dim=0))
    site, init = make(), SCTChannels(SCTChannels.Config(method="sct"))
    init.apply(site.adapter, site.base.weight(), {"output_norm": norms}, None)
    assert site.adapter.channels.tolist() == sorted(norms.topk(4).indices.tolist())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=default"], r"init\.method.* chooses no channels .* write init: sct"),
        (["adapter.channels=random"], r"adapter\.channels.* write measured"),
        (["adapter.bias=true", "restart={method: periodic, every: 2}"], r"adapter\.bias.* write false"),
    ],
)
def test_channels_are_chosen_or_said_to_be_random(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/sct", ["model.name=x/y", *overrides])


def test_no_channel_at_all_is_refused():
    with pytest.raises(ValueError, match=r"share 0\.01 is none of 16 outputs; use 0\.062 or more"):
        make(share=0.01)
