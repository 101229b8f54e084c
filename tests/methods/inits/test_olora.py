"""OLoRA's own statements, and PEFT as a second implementation."""

from __future__ import annotations

import torch

from tests.contracts.test_inits import make, weight_and_signals


def test_B_is_orthonormal_and_the_first_columns_of_the_weight_are_taken_whole():
    site, weight = make("olora", alpha=4.0)
    B, A = site.adapter.B, site.adapter.A
    torch.testing.assert_close(B.mT @ B, torch.eye(4), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((B @ A)[:, :4], weight[:, :4], atol=1e-5, rtol=1e-5)
    assert torch.equal(A, A.triu())


def test_peft_starts_alike():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    weight, _ = weight_and_signals()
    model = nn.Sequential(nn.Linear(32, 48, bias=False))
    model[0].weight.data.copy_(weight)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights="olora")
    layer = get_peft_model(model, config).base_model.model[0]
    site, _ = make("olora", alpha=8.0)
    torch.testing.assert_close(layer.lora_A["default"].weight, site.adapter.A, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.lora_B["default"].weight, site.adapter.B, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.base_layer.weight, site.base.weight(), atol=1e-5, rtol=1e-5)
