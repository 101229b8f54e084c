"""Gated LoRA: CoDyRA's start and scale."""

import math

import pytest
import torch

from lrft.core.params import Site
from lrft.methods.adapters.gated_lora import GatedLoRA
from lrft.registry.axes import QUANTIZERS


def make(rank=6, **settings) -> GatedLoRA:
    torch.manual_seed(0)
    return GatedLoRA(GatedLoRA.Config(rank=rank, **settings), Site("q", 40, 30))


def test_gates_are_normal_b_is_zero_and_a_is_as_in_lora():
    adapter = make(rank=4000)
    assert float(adapter.E.detach().std()) == pytest.approx(1.0, rel=0.05) and abs(adapter.E.mean()) < 0.05
    assert float(adapter.A.detach().abs().max()) == pytest.approx(1 / math.sqrt(40), rel=1e-3)
    assert not adapter.B.any()


def test_the_update_is_gated_and_not_scaled():
    """x A^T, times the gates, times B^T: the authors' forward pass."""
    adapter = make()
    torch.nn.init.normal_(adapter.B)
    weight, x = torch.randn(30, 40), torch.randn(5, 40)
    base = QUANTIZERS.get("none")(weight, None, QUANTIZERS.declared("none").config(method="none"))
    expected = x @ weight.T + (x @ adapter.A.T).mul(adapter.E) @ adapter.B.T
    torch.testing.assert_close(adapter(x, base), expected, rtol=1e-5, atol=1e-5)
    adapter.scale_for(2)
    torch.testing.assert_close(adapter(x, base), expected, rtol=1e-5, atol=1e-5)


def test_a_shut_gate_is_left_out_of_the_export():
    adapter = make()
    torch.nn.init.normal_(adapter.B)
    with torch.no_grad():
        adapter.E[[0, 3]] = 0
    assert adapter.peft.keys_of(adapter)["r"] == 4 and adapter.peft.tensors(adapter, None)["A"].shape == (
        4,
        40,
    )
    torch.testing.assert_close(
        adapter.peft.tensors(adapter, None)["B"] @ adapter.peft.tensors(adapter, None)["A"],
        adapter.composed(),
    )


def test_a_site_with_every_gate_shut_is_exported_as_one_component_of_zeros():
    adapter = make()
    torch.nn.init.zeros_(adapter.E)
    assert adapter.peft.keys_of(adapter)["r"] == 1
    assert not adapter.peft.tensors(adapter, None)["A"].any()
