"""LN-tuning beside PEFT's layer, and the count of PEFT's run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lrft.core.block import AdaptedBlock
from lrft.core.params import Site
from lrft.methods.adapters.ln_tuning import LNTuning
from lrft.model.fused import _norm_forward
from lrft.ops.elementwise import rms_norm
from tests.kept import keeping

NORMS = pytest.mark.parametrize(
    "norm", [lambda: LlamaRMSNorm(16), lambda: nn.LayerNorm(16)], ids=["rms", "layer"]
)


def make(norm, dtype=torch.float32):
    torch.manual_seed(0)
    block = norm().to(dtype).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_()
    has_bias = getattr(block, "bias", None) is not None
    adapter = LNTuning(LNTuning.Config(method="ln_tuning"), Site("a", 16, 16, has_bias=has_bias, kind="norm"))
    adapter.fit(block)
    return AdaptedBlock(block, adapter), block


@NORMS
def test_it_begins_as_the_norm_and_is_pefts_layer(norm):
    peft = pytest.importorskip("peft")
    site, block = make(norm)
    x = torch.randn(2, 5, 16)
    assert torch.equal(site(x), block(x))
    model = nn.ModuleDict({"norm": norm()})
    layer = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm"])).base_model.model["norm"]
    with torch.no_grad():
        for name, parameter in site.adapter.named_parameters():
            parameter.normal_()
            layer.ln_tuning_layers["default"].get_parameter(name).copy_(parameter)
    torch.testing.assert_close(site(x), layer(x))
    layer.merge()
    merged = dict(layer.get_base_layer().named_parameters())
    for name, (before, after) in site.merged_parameters().items():
        torch.testing.assert_close(after, merged[name])
        assert torch.equal(before, block.get_parameter(name))


def test_the_master_is_float32_and_the_norm_stays_in_its_precision():
    site, _ = make(lambda: LlamaRMSNorm(16), torch.bfloat16)
    x = torch.randn(4, 16).bfloat16().requires_grad_()
    y = site(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and site.adapter.weight.dtype == torch.float32
    assert site.adapter.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("norm", "offset", "first"), [(LlamaRMSNorm, None, False), (Gemma2RMSNorm, 1.0, True)]
)
def test_in_one_node_a_norm_keeps_its_input_alone_and_has_the_gradients_of_its_own_code(norm, offset, first):
    site, block = make(lambda: norm(16), torch.bfloat16)
    x, seed = torch.randn(512, 16).bfloat16(), torch.randn(512, 16).bfloat16()
    gradients = []
    for kind in (norm, type("Fused", (norm,), {"forward": _norm_forward(norm, offset, first, rms_norm)})):
        block.__class__ = kind
        site.adapter.weight.grad, given = None, x.clone().requires_grad_()
        with keeping() as kept:
            y = site(given)
        (y * seed).sum().backward()
        gradients.append([given.grad, site.adapter.weight.grad])
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0.02)
    assert (
        512 * (16 * 2 + 4) <= sum(kept.values()) <= 512 * (16 * 2 + 4) + 200
    )  # x, 1 / rms(x), and the weight


def test_the_published_count_on_llama_3_2_3b():
    count = LNTuning.count(LNTuning.Config(method="ln_tuning"), Site("a", 3072, 3072, kind="norm"))
    assert (2 * 28 + 1) * count == 175_104
