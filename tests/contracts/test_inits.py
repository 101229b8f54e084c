"""What every registered init owes, on dense and quantized bases."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from lrft.core.axes import ADAPTERS, INITS, QUANTIZERS
from lrft.core.params import Site
from lrft.model.attach import _adapted

ALL = pytest.mark.parametrize("name", INITS.names())
SCALES = pytest.mark.parametrize("alpha", [8.0, 3.0])
RESIDUAL = [name for name in INITS.names() if INITS.get(name).residual]


def weight_and_signals(out=48, width=32):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, width, generator=generator) / width**0.5
    gradient = torch.randn(out, 6, generator=generator) @ torch.randn(6, width, generator=generator)
    return weight, {"grad": gradient + 0.01 * torch.randn(out, width, generator=generator)}


def make(name, storage="none", alpha=8.0, rank=4, out=48, width=32, **settings):
    weight, signals = weight_and_signals(out, width)
    cls = INITS.get(name)
    init = cls(INITS.declared(name).config(method=name, **settings))
    adapter_config = ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha)
    torch.manual_seed(0)
    adapter = ADAPTERS.get("lora")(adapter_config, Site("a", width, out))
    storing = QUANTIZERS.declared(storage).config(method=storage)

    def quantize(w, b=None):
        return QUANTIZERS.get(storage)(w, b, storing)

    init.apply(adapter, weight, {key: signals[key] for key in init.needs}, quantize)
    return _adapted(adapter, weight, None, init, quantize), weight


@ALL
@SCALES
def test_the_model_is_the_pretrained_one_at_step_0(name, alpha):
    site, weight = make(name, alpha=alpha)
    x = torch.randn(7, 32)
    torch.testing.assert_close(site(x), F.linear(x, weight), atol=1e-5, rtol=1e-4)


@ALL
def test_an_anchored_quantized_base_is_the_plain_quantized_one_at_step_0(name):
    settings = {"residual": "anchor"} if name in RESIDUAL else {}
    site, weight = make(name, "nf4_reference", **settings)
    plain = QUANTIZERS.get("nf4_reference")(weight, None, QUANTIZERS.declared("nf4_reference").config())
    x = torch.randn(7, 32)
    torch.testing.assert_close(site(x), plain(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", RESIDUAL)
def test_on_quantized_bases_anchoring_is_the_default_and_on_dense_ones_rewriting(name):
    assert make(name, "nf4_reference")[0].anchored
    assert not make(name, "none")[0].anchored
    assert make(name, "none", residual="anchor")[0].anchored


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("residual", ["rewrite", "anchor"])
def test_merging_onto_the_pretrained_weight_forgets_the_start_and_keeps_the_change(name, residual):
    site, weight = make(name, residual=residual)
    before = copy.deepcopy(site.adapter)
    with torch.no_grad():
        for parameter in site.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = site.adapter.delta_weight(weight) - before.delta_weight(weight)
    torch.testing.assert_close(site.merged_weight(weight), weight + moved, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(site.merged_weight(), weight + moved, atol=1e-5, rtol=1e-4)
    x = torch.randn(5, 32)
    torch.testing.assert_close(site(x), F.linear(x, weight + moved), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("residual", ["rewrite", "anchor"])
def test_switched_off_is_the_pretrained_map(name, residual):
    site, weight = make(name, residual=residual)
    site.enabled = False
    x = torch.randn(5, 32)
    torch.testing.assert_close(site(x), F.linear(x, weight), atol=1e-5, rtol=1e-4)


@ALL
def test_the_same_seed_gives_the_same_start(name):
    one, two = make(name)[0].adapter.state_dict(), make(name)[0].adapter.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", RESIDUAL)
def test_peft_tensors_with_the_start_are_the_change_alone(name):
    site, weight = make(name)
    with torch.no_grad():
        site.adapter.A.mul_(1.1)
    tensors = site.adapter.peft_tensors(site.start)
    keys = site.adapter.peft_config(site.adapter.config, with_start=True)
    assert keys["r"] == tensors["A"].shape[0] == 8
    change = keys["lora_alpha"] / keys["r"] * tensors["B"] @ tensors["A"]
    torch.testing.assert_close(weight + change, site.merged_weight(weight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_change_much_smaller_than_the_start_survives_bfloat16(name):
    """Subtracting two bfloat16 products would drown it; the difference of the factors is formed first."""
    site, _ = make(name, residual="anchor")
    with torch.no_grad():
        site.adapter.B.add_(1e-3 * torch.randn_like(site.adapter.B))
    x = torch.randn(64, 32)
    exact = site(x) - site.base(x)
    x16 = x.to(torch.bfloat16)
    A, B = site.adapter._factors_since(site.start)
    rough = (x16 @ A.to(torch.bfloat16).mT @ B.to(torch.bfloat16).mT).float() * site.adapter.scaling
    assert (rough - exact).norm() < 0.02 * exact.norm()
