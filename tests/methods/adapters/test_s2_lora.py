"""S2-LoRA's own statements: what sites share, what is theirs, and how it becomes sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.core.settling import settle
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.s2_lora import S2LoRA
from lrft.methods.quant.none import Dense
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.training import schedule

SITES = {name: Site(name, width, out) for name, width, out in (("a", 16, 24), ("b", 16, 24), ("c", 24, 16))}


def make(rank=6, **settings):
    """Three sites, of which two are of one shape."""
    torch.manual_seed(0)
    config = S2LoRA.Config(method="s2_lora", rank=rank, **settings)
    shared = S2LoRA.shared(config, SITES, 0)
    weights = [torch.randn(s.out_features, s.in_features) for s in SITES.values()]
    parts = [S2LoRA.at(config, site, shared) for site in SITES.values()]
    return [Adapted(Dense(W), part) for W, part in zip(weights, parts, strict=True)], shared


def test_sites_of_a_shape_share_the_very_factors_and_each_has_its_own_diagonal():
    (a, b, c), shared = make()
    (A, B), (A2, B2), (A3, _) = (site.adapter.pairs[0].of(site.adapter.site) for site in (a, b, c))
    assert A is A2 and B is B2 and A3.shape == (6, 24)
    assert shared.roles == {f"{n}_{s}": f"lora_{n}" for s in ("16_24", "24_16") for n in "AB"}
    assert a.adapter.state_dict().keys() == {"e"} and a.adapter.e is not b.adapter.e


def test_numbers_are_counted_once_for_a_shape():
    sites, shared = make()
    own = sum(S2LoRA.count(site.adapter.config, site.adapter.site) for site in sites)
    assert own == 3 * 6 and sum(p.numel() for p in shared.parameters()) == 2 * 6 * (16 + 24)


def test_gradients_of_the_factors_are_summed_over_the_sites_that_share_them():
    (a, b, _), shared = make()
    for site in (a, b):
        nn.init.normal_(site.adapter.e)
    x, y, seed = torch.randn(5, 16), torch.randn(4, 16), torch.randn(9, 24)
    (torch.cat([a(x), b(y)]) * seed).sum().backward()
    A, B = shared.A_24_16.detach().requires_grad_(True), shared.B_24_16.detach().requires_grad_(True)
    own = [site.adapter.e.detach().clone().requires_grad_(True) for site in (a, b)]
    ours = torch.cat([inputs @ (B * e @ A).mT for inputs, e in ((x, own[0]), (y, own[1]))])
    (ours * seed).sum().backward()
    torch.testing.assert_close(shared.A_24_16.grad, A.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shared.B_24_16.grad, B.grad, atol=1e-4, rtol=1e-4)
    for site, e in zip((a, b), own, strict=True):
        torch.testing.assert_close(site.adapter.e.grad, e.grad, atol=1e-4, rtol=1e-4)


def test_with_a_diagonal_of_ones_it_is_lora_and_the_first_step_moves_the_diagonal_alone():
    (site, *_), shared = make()
    site(torch.randn(5, 16)).square().sum().backward()
    assert site.adapter.e.grad.all() and not shared.A_24_16.grad.any() and not shared.B_24_16.grad.any()
    nn.init.ones_(site.adapter.e)
    lora = LoRA(LoRA.Config(method="lora", rank=6, alpha=6), site.adapter.site)
    lora.load_state_dict({"A": shared.A_24_16, "B": shared.B_24_16})
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), Adapted(site.base, lora)(x), atol=1e-5, rtol=1e-5)


def test_the_proximal_step_takes_the_rate_times_the_threshold_off_every_size_and_ends_at_0():
    site = make(rank=4, threshold=2.0)[0][0]
    with torch.no_grad():
        site.adapter.e.copy_(torch.tensor([1.0, -1.0, 0.1, 0.0]))
    settle([site.adapter], torch.optim.SGD([site.adapter.e], lr=0.1))
    assert (
        torch.allclose(site.adapter.e, torch.tensor([0.8, -0.8, 0.0, 0.0])) and not site.adapter.e[2:].any()
    )
    before = site.adapter.e.detach().clone()
    settle([site.adapter], torch.optim.SGD([torch.zeros(1)], lr=0.1))  # e does not train
    assert torch.equal(site.adapter.e, before)


def test_gradient_descent_ends_where_the_penalised_loss_has_its_least():
    """The gradient of e is -t sign(e) where e is not 0, and at most t where it is: the conditions of the lasso."""
    sites, shared = make(rank=6, threshold=0.3)
    shared.requires_grad_(False)
    infos = [ParamInfo("a.e", sites[0].adapter.e, "core")]
    settings = OPTIMIZERS.declared("sgd").config(method="sgd", lr=0.2, momentum=0.0)
    optimizer = OPTIMIZERS.get("sgd").build(infos, settings)
    rates = schedule.build(optimizer, SCHEDULES.settings("constant"), 9)
    run = Run(nn.ModuleList(sites), infos, optimizer, rates, 9)
    assert run.settling == [site.adapter for site in sites]
    x, e = torch.randn(64, 16), sites[0].adapter.e
    target = x @ (shared.B_24_16[:, :2] @ shared.A_24_16[:2]).mT
    for _ in range(200):
        optimizer.zero_grad()
        (sites[0].adapter.update(x) - target).square().sum(1).mean().backward()
        gradient = e.grad.clone()
        optimizer.step()
        settle(run.settling, optimizer)
    zero = e == 0
    assert e[:2].all() and 0 < zero.sum() < 6
    assert gradient[zero].abs().max() < 0.3
    torch.testing.assert_close(gradient[~zero], -0.3 * e[~zero].sign(), atol=1e-3, rtol=0)


def test_of_what_is_made_of_the_factors_nothing_is_kept():
    site, kept = make()[0][0], []
    nn.init.ones_(site.adapter.e)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        site(torch.randn(5, 16))
    assert kept.count((6, 16)) == kept.count((24, 6)) == 1  # A and B themselves


@pytest.mark.parametrize("live", [0, 3])
def test_the_form_for_peft_is_a_lora_of_the_components_that_are_left(live):
    site = make()[0][0]
    with torch.no_grad():
        site.adapter.e[:live] = torch.tensor([2.0, -1.0, 0.5])[:live]
    form = S2LoRA.peft
    keys, tensors = form.keys_of(site.adapter), form.tensors_of(site.adapter)
    assert keys["r"] == keys["lora_alpha"] == max(1, live)
    A, B = tensors["lora_A.weight"], tensors["lora_B.weight"]
    assert A.shape == (max(1, live), 16) and B.shape == (24, max(1, live))
    torch.testing.assert_close(B @ A, site.adapter.change())
