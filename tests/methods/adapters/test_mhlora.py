"""Multi-head LoRA's own statements, and PEFT's LoRA of all heads on the same numbers."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.mhlora import MHLoRA
from lrft.methods.quant.none import Dense


def make(heads=3, rank=4, alpha=8.0, out=24, width=16):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = MHLoRA(
        MHLoRA.Config(method="mhlora", heads=heads, rank=rank, alpha=alpha), Site("a", width, out)
    )
    torch.nn.init.normal_(adapter.B)
    return Adapted(Dense(weight), adapter), weight


def test_it_is_the_sum_of_its_heads():
    site, weight = make()
    x = torch.randn(2, 5, 16)
    expected = F.linear(x, weight)
    for A, B in site.adapter.by_head(site.adapter.A, site.adapter.B):
        expected = expected + 8 / 4 * F.linear(F.linear(x, A), B)
    torch.testing.assert_close(site(x), expected, atol=1e-5, rtol=1e-5)


def test_every_head_starts_orthogonal_and_of_its_own():
    site, _ = make()
    site.adapter.reset()
    heads = [A for A, _ in site.adapter.by_head(site.adapter.A, site.adapter.B)]
    for A in heads:
        torch.testing.assert_close(A @ A.mT, 16 / 4 * torch.eye(4), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(heads[0], heads[1]) and not site.adapter.B.any()


def test_one_head_is_lora():
    site, _ = make(heads=1)
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=8.0), site.adapter.site)
    lora.load_state_dict(site.adapter.state_dict())
    x = torch.randn(5, 16)
    assert torch.equal(site(x), lora(x, site.base))


def test_it_is_pefts_lora_of_all_heads(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "LoraConfig")
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data.copy_(site.adapter.A)
    layer.lora_B["default"].weight.data.copy_(site.adapter.B)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_heads_count_as_loras():
    config, site = MHLoRA.Config(method="mhlora", heads=32, rank=32), Site("a", 4096, 1024)
    assert MHLoRA.count(config, site) == 32 * LoRA.count(LoRA.Config(method="lora", rank=32), site)
