"""IA3's own statements, PEFT's layer on the same numbers, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.ia3 import IA3
from lrft.methods.quant.none import Dense
from lrft.registry.axes import ADAPTERS
from tests.kept import keeping

SITES = ["mlp.down_proj", "self_attn.k_proj"]


def make(name="self_attn.k_proj", out=24, width=16, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    weight, offset = torch.randn(out, width), torch.randn(out) if bias else None
    adapter = IA3(IA3.Config(method="ia3"), Site(f"layers.0.{name}", width, out, has_bias=bias))
    with torch.no_grad():
        adapter.l.add_(0.3 * torch.randn_like(adapter.l))
    return Adapted(Dense(weight.to(dtype), None if offset is None else offset.to(dtype)), adapter), weight


@pytest.mark.parametrize("name", SITES)
def test_it_is_pefts_layer_forward_and_merged(name):
    peft = pytest.importorskip("peft")
    site, weight = make(name)
    leaf = name.rpartition(".")[2]
    model = nn.ModuleDict({leaf: nn.Linear(16, 24)})
    with torch.no_grad():
        model[leaf].weight.copy_(weight)
        model[leaf].bias.copy_(site.base.bias)
    keys = {k: v for k, v in IA3.peft.keys(site.adapter.config, False).items() if k != "peft_type"}
    theirs = peft.get_peft_model(model, peft.IA3Config(target_modules=[leaf], **keys)).base_model.model[leaf]
    (tensor,) = IA3.peft.tensors_of(site.adapter).values()
    assert theirs.ia3_l["default"].shape == tensor.shape
    theirs.ia3_l["default"].data.copy_(tensor)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    theirs.merge()
    merged = theirs.get_base_layer()
    torch.testing.assert_close(site.merged_weight(), merged.weight)
    bias = site.merged_bias()
    torch.testing.assert_close(site.base.bias if bias is None else bias, merged.bias)


def test_outputs_are_scaled_bias_included_and_inputs_where_a_block_ends():
    x = torch.randn(5, 16)
    for name in SITES:
        site, weight = make(name)
        scale, bias = site.adapter.l, site.base.bias
        expected = F.linear(x * scale, weight, bias) if "down" in name else scale * F.linear(x, weight, bias)
        torch.testing.assert_close(site(x), expected)


def test_the_start_is_the_base_bit_for_bit_in_half_precision():
    site, _ = make(dtype=torch.bfloat16)
    site.adapter.reset()
    x = torch.randn(5, 16).bfloat16()
    assert torch.equal(site(x), site.base(x))


def test_a_gain_that_bfloat16_cannot_tell_from_1_still_scales():
    site, _ = make(dtype=torch.bfloat16, bias=False)
    with torch.no_grad():
        site.adapter.l.fill_(1.003)
    assert site.adapter.l.bfloat16().eq(1).all()
    x = torch.randn(512, 16).bfloat16()
    assert not torch.equal(site(x), site.base(x))


def test_of_a_token_the_product_is_kept_once_in_its_own_precision():
    for name, numbers in zip(SITES, (16, 24), strict=True):
        site, _ = make(name, dtype=torch.bfloat16)
        x = torch.randn(64, 16).bfloat16().requires_grad_()
        with keeping() as kept:
            y = site(x)
        del y
        own = {site.adapter.l.data_ptr(), *(b.data_ptr() for b in site.base.buffers())}
        assert sum(size for place, size in kept.items() if place not in own) == 64 * numbers * 2


@pytest.mark.parametrize(
    ("targets", "feedforward", "published"),
    [
        (("k_proj", "v_proj", "down_proj"), None, 286_720),
        (
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            ["gate_proj", "up_proj", "down_proj"],
            630_784,
        ),
    ],
)
def test_the_published_counts_on_llama_3_2_3b(targets, feedforward, published):
    shapes = {"q_proj": (3072, 3072), "k_proj": (1024, 3072), "v_proj": (1024, 3072), "o_proj": (3072, 3072)}
    shapes |= {"gate_proj": (8192, 3072), "up_proj": (8192, 3072), "down_proj": (3072, 8192)}
    config = IA3.Config(method="ia3", feedforward=feedforward)
    sites = [Site(f"layers.0.mlp.{n}", shapes[n][1], shapes[n][0]) for n in targets]
    assert 28 * sum(IA3.count(config, site) for site in sites) == published


def test_it_goes_where_the_paper_puts_it():
    assert ADAPTERS.settings("ia3").targets == ["k_proj", "v_proj", "down_proj"]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("mlp.up_proj", "mlp.down_proj"),
        ("mlp.fc_in", "mlp.fc_out"),  # GPT-J, CodeGen
        ("feed_forward.w3", "feed_forward.w2"),  # LFM2
        ("block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.0.w2"),  # Mixtral
        ("shared_mlp.input_linear", "shared_mlp.output_linear"),  # GraniteMoeHybrid
        ("feed_forward.key", "feed_forward.value"),  # RWKV
        ("attention.value", "feed_forward.value"),
        ("attn.c_proj", "mlp.c_proj"),  # GPT-2, StarCoder2
        ("fc1", "fc2"),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ],
)
def test_the_inner_activation_is_the_input_of_the_last_map_whatever_a_family_calls_it(first, last):
    config = IA3.Config(method="ia3")
    assert config.scales_inputs(f"model.layers.0.{last}")
    assert not config.scales_inputs(f"model.layers.0.{first}")


def test_a_bias_that_trains_is_scaled_when_it_is_merged():
    site, _ = make(bias=False)
    site.adapter.site = Site("a", 16, 24, has_bias=True)
    site.train_bias(nn.Parameter(torch.randn(24)))
    x = torch.randn(5, 16)

    torch.testing.assert_close(site(x), F.linear(x, site.merged_weight(), site.merged_bias()))
    torch.testing.assert_close(site.merged_bias(), site.adapter.l * site.bias)
