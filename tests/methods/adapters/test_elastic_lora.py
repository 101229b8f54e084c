"""Elastic LoRA: whole it is a LoRA, PEFT's too, and a part of it is the LoRA of the leading components at its scale."""

from __future__ import annotations

import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS, QUANTIZERS

SITE = Site("a", 12, 10)


def adapted(name="elastic_lora", rank=6, **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(10, 12), None, QUANTIZERS.settings("none"))
    config = ADAPTERS.settings(name, rank=rank, alpha=9.0, **settings)
    found = Adapted(base, ADAPTERS.get(name)(config, SITE))
    nn.init.normal_(found.adapter.B)
    return found


def test_with_everything_shown_it_is_a_lora():
    mine, plain = adapted(), adapted("lora")
    assert (
        torch.equal(mine.adapter.A, plain.adapter.A)
        and mine.adapter.count(mine.adapter.config, SITE) == 6 * 22
    )
    x = torch.randn(5, 12)
    assert torch.equal(mine(x), plain(x)) and torch.equal(mine.merged_weight(), plain.merged_weight())


def test_a_part_is_the_lora_of_the_leading_components_at_the_scale_of_the_whole():
    mine, x = adapted(), torch.randn(5, 12)
    mine.adapter.show(torch.arange(6) < 4)
    A, B = mine.adapter.A[:4], mine.adapter.B[:, :4]
    torch.testing.assert_close(mine(x), mine.base(x) + 9 / 6 * x @ A.T @ B.T)
    mine(x).sum().backward()
    assert not mine.adapter.A.grad[4:].any() and not mine.adapter.B.grad[:, 4:].any()
    assert mine.adapter.A.grad[:4].all() and mine.adapter.B.grad[:, :4].all()


def test_peft_computes_a_part_from_its_rank_and_scale():
    """The published script copies rank and alpha of the whole beside a part, which is another function."""
    from peft import LoraConfig, inject_adapter_in_model

    mine, x = adapted(), torch.randn(5, 12)
    for live in (6, 4):
        mine.adapter.show(torch.arange(6) < live)
        keys = type(mine.adapter).peft_form().keys_of(mine.adapter)
        tensors = type(mine.adapter).peft_form().tensors(mine.adapter, None)
        assert (keys["r"], keys["lora_alpha"]) == (live, live)
        theirs = nn.Sequential(nn.Linear(12, 10, bias=False))
        theirs[0].weight.data = mine.base.weight().clone()
        config = LoraConfig(r=keys["r"], lora_alpha=keys["lora_alpha"], target_modules=["0"])
        theirs = inject_adapter_in_model(config, theirs)
        theirs[0].lora_A["default"].weight.data = tensors["A"]
        theirs[0].lora_B["default"].weight.data = tensors["B"]
        torch.testing.assert_close(theirs(x), mine(x), atol=1e-5, rtol=1e-5)
