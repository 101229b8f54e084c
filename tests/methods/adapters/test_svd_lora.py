"""SVD-LoRA: the published scale and start, a mask and a gain that are in the function, a gradient of the change."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.svd_lora import SVDLoRA
from lrft.registry.axes import QUANTIZERS


def make(rank=6, seed=0, **settings) -> SVDLoRA:
    torch.manual_seed(seed)
    return SVDLoRA(SVDLoRA.Config(rank=rank, **settings), Site("q", 40, 30))


def dense(bias: bool = True):
    torch.manual_seed(3)
    none = QUANTIZERS.get("none")
    weight = torch.randn(30, 40) / 6
    return none(weight, torch.randn(30) if bias else None, QUANTIZERS.declared("none").config(method="none"))


def opened(**settings) -> SVDLoRA:
    adapter = make(**settings)
    torch.nn.init.normal_(adapter.E)
    return adapter


def test_the_scale_is_alpha_over_rank_plus_an_epsilon_and_never_the_live_rank():
    adapter = opened(alpha=16.0)
    assert adapter.scaling == 16.0 / (6 + 1e-5)
    with torch.no_grad():
        adapter.E[2:] = 0
    expected = 16.0 / (6 + 1e-5) * adapter.B[:, :2] @ torch.diag(adapter.E[:2]) @ adapter.A[:2]
    torch.testing.assert_close(adapter.delta_weight(torch.zeros(30, 40)), expected)


def test_factors_start_as_published_and_the_singular_values_at_zero():
    adapter = make(rank=400)
    assert float(adapter.A.detach().std()) == pytest.approx(0.02, rel=0.02) and float(
        adapter.B.detach().std()
    ) == pytest.approx(0.02, rel=0.02)
    assert not adapter.E.any()


def test_the_kaiming_draw_has_slope_0_and_the_plain_scale():
    adapter = make(rank=400, draw="kaiming", alpha=8.0)
    assert float(adapter.A.detach().abs().max()) == pytest.approx(math.sqrt(6 / 40), rel=1e-2)
    assert float(adapter.B.detach().abs().max()) == pytest.approx(math.sqrt(6 / 400), rel=1e-2)
    assert adapter.scaling == 8.0 / 400 and not adapter.E.any()


def test_with_unit_singular_values_it_is_lora():
    adapter, base, x = make(rank=6, alpha=12.0), dense(), torch.randn(5, 40)
    lora = LoRA(LoRA.Config(rank=6, alpha=12.0), Site("q", 40, 30))
    with torch.no_grad():
        adapter.E.fill_(1)
        lora.A.copy_(adapter.A)
        lora.B.copy_(adapter.B)
    torch.testing.assert_close(adapter(x, base), lora(x, base), rtol=1e-5, atol=1e-5)


def test_agrees_with_peft_including_its_gradients():
    peft = pytest.importorskip("peft")
    layer = torch.nn.Sequential(torch.nn.Linear(40, 30))
    config = peft.AdaLoraConfig(
        init_r=6, lora_alpha=16, target_modules=["0"], total_step=10, lora_dropout=0.0
    )
    wrapped = peft.get_peft_model(layer, config).base_model.model[0]
    adapter, base = opened(alpha=16.0), dense()
    with torch.no_grad():
        wrapped.base_layer.weight.copy_(base.weight())
        wrapped.base_layer.bias.copy_(base.bias)
        for ours, theirs in ((adapter.A, wrapped.lora_A), (adapter.B, wrapped.lora_B)):
            theirs["default"].copy_(ours)
        wrapped.lora_E["default"].copy_(adapter.E[:, None])
    x = torch.randn(5, 40)
    y, z = adapter(x, base), wrapped(x)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(adapter.E.grad, wrapped.lora_E["default"].grad[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.A.grad, wrapped.lora_A["default"].grad, rtol=1e-4, atol=1e-5)


def test_a_hidden_component_is_neither_in_the_function_nor_in_a_gradient():
    adapter, base, x = opened(), dense(), torch.randn(5, 40)
    adapter.show(torch.tensor([True, True, False, True, False, True]))
    adapter(x, base).square().sum().backward()
    hidden = [2, 4]
    assert (
        not adapter.A.grad[hidden].any()
        and not adapter.B.grad[:, hidden].any()
        and not adapter.E.grad[hidden].any()
    )
    before = adapter(x, base)
    with torch.no_grad():
        adapter.A[hidden] += 1
    assert torch.equal(adapter(x, base), before)
    assert adapter.factors()[0].shape == (4, 40)


def test_a_zeroed_singular_value_still_gets_a_gradient_so_it_can_come_back():
    adapter = opened()
    with torch.no_grad():
        adapter.E[1] = 0
    adapter(torch.randn(5, 40), dense()).square().sum().backward()
    assert adapter.E.grad[1] != 0 and not adapter.A.grad[1].any()


def test_scaling_for_another_rank_is_saved_with_the_adapter_and_exported():
    adapter = opened(alpha=16.0)
    plain = adapter.delta_weight(torch.zeros(30, 40))
    adapter.scale_for(2)
    torch.testing.assert_close(adapter.composed(), plain * (6 + 1e-5) / (2 + 1e-5))
    again = make(seed=5, alpha=16.0)
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again.composed(), adapter.composed())
    A, B = again.factors()
    torch.testing.assert_close(B @ A, again.composed())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_watching_gives_the_gradient_at_the_composed_change_summed_over_micro_batches(dropout):
    adapter, base = opened(dropout=dropout), dense()
    adapter.watch = True
    expected = torch.zeros(30, 40)
    for seed in range(3):
        x, dy = torch.randn(7, 40), torch.randn(7, 30)
        torch.manual_seed(seed)
        (adapter(x, base) * dy).sum().backward()
        torch.manual_seed(seed)
        seen = F.dropout(x, dropout, training=True) if dropout else x
        expected += dy.mT @ seen
    torch.testing.assert_close(adapter.take_gradient(), expected, rtol=1e-5, atol=1e-5)
    assert adapter.take_gradient() is None


def test_watching_changes_neither_output_nor_gradients():
    adapter, base, x = opened(), dense(), torch.randn(5, 40)
    grads = []
    for watch in (False, True):
        adapter.watch = watch
        adapter.zero_grad()
        y = adapter(x, base)
        y.square().sum().backward()
        grads.append((y.detach(), *(p.grad.clone() for p in adapter.parameters())))
    for plain, watched in zip(*grads, strict=True):
        torch.testing.assert_close(plain, watched, rtol=1e-4, atol=1e-5)
    adapter.take_gradient()
    with torch.no_grad():
        adapter(x, base)
    assert adapter.take_gradient() is None


def test_watching_under_activation_checkpointing_counts_every_gradient_once():
    adapter, base, x = opened(), dense(), torch.randn(5, 40, requires_grad=True)
    adapter.watch = True
    found = []
    for reentrant in (None, True, False):
        y = adapter(x, base) if reentrant is None else checkpoint(adapter, x, base, use_reentrant=reentrant)
        y.square().sum().backward()
        found.append(adapter.take_gradient())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_the_penalty_is_what_an_allocator_asked_for():
    adapter = make()
    assert adapter.penalty() is None
    adapter.regularizer = lambda A, B, mask: A.square().sum() + mask.sum()
    torch.testing.assert_close(adapter.penalty(), adapter.A.square().sum() + 6)
