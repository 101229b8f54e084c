"""DoRA's own statements."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.dora import DoRA
from lrft.methods.adapters.lora import LoRA
from lrft.ops.dropout import drop
from lrft.registry.axes import QUANTIZERS

SITE = Site("layers.0.q_proj", 24, 40, has_bias=True)


def make(**settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(40, 24), torch.randn(40))
    adapter = DoRA(DoRA.Config(method="dora", rank=4, **settings), SITE)
    adapter.start(base.weight())
    return adapter, base


def test_published_parameter_counts():
    shapes = [(4096, 4096)] * 3 + [(11008, 4096), (4096, 11008)]
    for rank, published in ((32, 56_975_360), (16, 28_925_952)):  # DoRA paper, LLaMA-7B, 0.84 % and 0.43 %
        config = DoRA.Config(method="dora", rank=rank)
        assert 32 * sum(DoRA.count(config, Site("s", i, o)) for o, i in shapes) == published


def test_row_norms_of_the_merged_weight_are_the_magnitudes():
    adapter, base = make()
    torch.nn.init.normal_(adapter.B)
    torch.nn.init.uniform_(adapter.m, 0.5, 2.0)
    merged = Adapted(base, adapter).merged_weight()
    torch.testing.assert_close(merged.norm(dim=1), adapter.m.detach(), atol=1e-5, rtol=1e-5)


def test_the_expanded_norms_are_the_norms_of_the_sum():
    adapter, base = make()
    torch.nn.init.normal_(adapter.B)
    direct = adapter._direct(base.weight()).detach()
    torch.testing.assert_close(adapter._expanded(base.weight()).detach(), direct, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        adapter.norms(base.weight()), direct
    )  # in float32 the scale is merging's to the last bit


def test_at_step_0_the_scale_is_exactly_1():
    adapter, base = make()
    assert torch.equal(adapter.m / adapter.norms(base.weight()), torch.ones(40))


def test_with_the_magnitude_at_the_norms_it_is_lora():
    adapter, base = make()
    torch.nn.init.normal_(adapter.B, std=0.1)
    adapter.m.data.copy_(adapter.norms(base.weight()))
    lora = LoRA(LoRA.Config(method="lora", rank=4), SITE)
    lora.load_state_dict({"A": adapter.A, "B": adapter.B})
    x = torch.randn(5, 24)
    torch.testing.assert_close(adapter(x, base), lora(x, base), atol=1e-5, rtol=1e-5)


def test_the_norm_is_detached():
    """dL/dB flows through g s B A alone: it is g times LoRA's gradient, without the term of the norm."""
    adapter, base = make()
    torch.nn.init.normal_(adapter.B, std=0.1)
    torch.nn.init.uniform_(adapter.m, 0.5, 2.0)
    x, seed = torch.randn(5, 24), torch.randn(5, 40)
    (adapter(x, base) * seed).sum().backward()
    g = (adapter.m / adapter.norms(base.weight())).detach()
    t = x @ adapter.A.detach().mT
    torch.testing.assert_close(adapter.B.grad, adapter.scaling * (seed * g).mT @ t, atol=1e-4, rtol=1e-4)


def test_dropout_is_the_reference_form_with_one_draw():
    adapter, base = make(dropout=0.5)
    torch.nn.init.normal_(adapter.B, std=0.1)
    torch.nn.init.uniform_(adapter.m, 0.5, 2.0)
    x = torch.randn(5, 24)
    torch.manual_seed(3)
    got = adapter(x, base)
    torch.manual_seed(3)
    d = drop(x.clone(), 0.5).whole(x)
    g, W = adapter.m / adapter.norms(base.weight()), base.weight()
    expected = (
        x @ W.mT + (g - 1) * (d @ W.mT) + base.bias + g * adapter.scaling * (d @ adapter.A.mT @ adapter.B.mT)
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_dead_row_stays_finite():
    base = QUANTIZERS.get("none")(torch.cat([torch.zeros(1, 24), torch.randn(39, 24)]))
    adapter = DoRA(DoRA.Config(method="dora", rank=4), Site("s", 24, 40))
    adapter.start(base.weight())
    y = adapter(torch.randn(2, 24), base)
    y.sum().backward()
    assert y.isfinite().all()
    assert adapter.B.grad.isfinite().all()


def test_small_scales_survive_bfloat16():
    """g = 1.001 is 1 in bfloat16; the product is formed with the unrounded g."""
    adapter, _ = make()
    base = QUANTIZERS.get("none")(torch.full((40, 24), 1.0, dtype=torch.bfloat16))
    adapter.start(base.weight())
    adapter.m.data.mul_(1.003)
    x = torch.rand(64, 24).to(torch.bfloat16)
    assert (adapter(x, base).float().mean() / base(x).float().mean()).item() > 1.001


def only_magnitude(**settings):
    torch.manual_seed(0)
    config = DoRA.Config(method="dora", rank=4, magnitude_only=["q_proj"], **settings)
    base = QUANTIZERS.get("none")(torch.randn(40, 24), torch.randn(40))
    adapter = DoRA.at(config, SITE)
    adapter.start(base.weight())
    return adapter, base


def test_the_published_count_with_directions_at_some_sites():
    """Table 6: magnitude of all, direction of q, k and v: 0.39 % of LLaMA-7B with it."""
    shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096))
    shapes |= {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
    rest = ["o_proj", "gate_proj", "up_proj", "down_proj"]
    config = DoRA.Config(method="dora", rank=32, magnitude_only=rest)
    sites = [Site(f"layers.0.mlp.{name}", i, o) for name, (o, i) in shapes.items()]
    count = 32 * sum(DoRA.count(config, site) for site in sites)
    assert (
        count
        == 26_525_696
        == 32 * sum(sum(p.numel() for p in DoRA.at(config, s).parameters()) for s in sites)
    )
    assert round(100 * count / (6_738_415_616 + count), 2) == 0.39


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_without_directions_it_is_dora_whose_b_is_zero(dropout):
    adapter, base = only_magnitude(dropout=dropout)
    whole, _ = make(dropout=dropout)
    for one in (adapter, whole):
        one.m.data.mul_(torch.linspace(0.5, 2, 40))
    results = []
    for one in (adapter, whole):
        torch.manual_seed(3)
        x = torch.arange(120.0).view(5, 24).div(60).requires_grad_()
        y = one(x, base)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, one.m])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    merged = Adapted(base, adapter).merged_weight()
    torch.testing.assert_close(merged.norm(dim=1), adapter.m.detach(), atol=1e-5, rtol=1e-5)
