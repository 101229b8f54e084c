"""ALLoRA's own statements: the forward pass is LoRA's, and its gradients are weighed as the definition says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.allora import ALLoRA, weights
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense
from lrft.registry.axes import ADAPTERS

SITE = Site("a", 24, 40)


def make(eta=2.0, moved=True):
    torch.manual_seed(0)
    weight = torch.randn(40, 24)
    adapter = ALLoRA(ALLoRA.Config(method="allora", rank=4, eta=eta), SITE)
    if moved:
        torch.nn.init.normal_(adapter.B)
    return Adapted(Dense(weight), adapter), weight


def gradients(site, x, seed):
    x = x.clone().requires_grad_(True)
    (site(x) * seed).sum().backward()
    return x.grad, site.adapter.A.grad, site.adapter.B.grad


def test_gradients_are_those_of_the_definition_in_float64():
    site, weight = make(eta=0.7)
    x, seed = torch.randn(5, 24), torch.randn(5, 40)
    dx, dA, dB = gradients(site, x, seed)
    A, B, W = (t.detach().double() for t in (site.adapter.A, site.adapter.B, weight))
    c = torch.diag(1 / ((B @ A).norm(dim=1) + 1 / 0.7**2).sqrt())
    G = seed.double().mT @ x.double()
    torch.testing.assert_close(dB.double(), c @ G @ A.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dA.double(), B.mT @ c @ G, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dx.double(), seed.double() @ (W + B @ A), atol=1e-4, rtol=1e-4)


def test_the_output_and_the_gradient_of_the_input_are_those_of_a_lora_without_scale():
    site, _ = make()
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=4), SITE)
    lora.load_state_dict(site.adapter.state_dict())
    plain, x, seed = Adapted(site.base, lora), torch.randn(2, 3, 24), torch.randn(2, 3, 40)
    torch.testing.assert_close(site(x), plain(x), atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(site, x, seed), gradients(plain, x, seed)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=1e-4)
    c = weights(lora.A.detach(), lora.B.detach(), 2.0)
    torch.testing.assert_close(ours[2], c[:, None] * theirs[2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours[1], theirs[1], rtol=0.1)


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_at_step_0_every_weight_is_eta_and_the_gradient_is_eta_times_loras(eta):
    site, _ = make(eta, moved=False)
    adapter = site.adapter
    torch.testing.assert_close(weights(adapter.A, adapter.B, eta), torch.full((40,), eta))
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=4), SITE)
    lora.load_state_dict(adapter.state_dict())
    x, seed = torch.randn(5, 24), torch.randn(5, 40)
    ours, theirs = gradients(site, x, seed), gradients(Adapted(site.base, lora), x, seed)
    torch.testing.assert_close(ours[2], eta * theirs[2])
    assert not ours[1].any()


def test_the_weight_falls_as_a_row_grows_and_is_finite_and_its_own():
    A, B = torch.randn(4, 24), torch.zeros(3, 4)
    B[1], B[2] = 1.0, 1e10
    c = weights(A, B, 2.0)
    assert c[0] == 2.0 and c[0] > c[1] > c[2] > 0
    torch.testing.assert_close(c, 1 / ((B @ A).norm(dim=1) + 0.25).sqrt())


def test_the_product_is_not_kept_and_neither_is_a_weighed_gradient():
    site, _ = make()
    x, kept = torch.randn(7, 24), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        site.adapter.update(x)
    assert sorted(map(tuple, kept)) == [(4, 24), (7, 4), (7, 24), (40, 4)]


def test_pefts_lora_computes_it(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "LoraConfig")
    theirs.base_model.model[0].lora_A["default"].weight.data.copy_(site.adapter.A)
    theirs.base_model.model[0].lora_B["default"].weight.data.copy_(site.adapter.B)
    x = torch.randn(5, 24)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    site.adapter.compute_dtype = torch.bfloat16  # of the products in training; what is merged is exact
    torch.testing.assert_close(F.linear(x, site.merged_weight()), theirs(x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("key", ["alpha", "dropout", "rslora"])
def test_it_has_no_scale_and_no_dropout(key):
    assert key not in ADAPTERS.declared("allora").config.model_fields
