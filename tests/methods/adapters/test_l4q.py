"""L4Q's own statements: the four gradients of the paper, and a merged weight that is integers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.l4q import L4Q
from lrft.methods.quant.none import Dense
from tests.each import each


def make(bits=4, group_size=8, out=24, width=32, moved=True, dtype=torch.float32):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = L4Q.Config(method="l4q", bits=bits, group_size=group_size, alpha=8.0)
    adapter = L4Q(config, Site("a", width, out))
    adapter.start(weight)
    if moved:
        with torch.no_grad():
            adapter.B.normal_(std=0.3)
            adapter.q.mul_(0.7)  # so that some weights are cut off
            adapter.b.normal_(std=0.05)
    return Adapted(Dense(weight.to(dtype)), adapter), weight


def codes(site, weight):
    """v, n and the mask of the formula, (out, groups, size), written out."""
    adapter, config = site.adapter, site.adapter.config
    N = 2 ** (config.bits - 1)
    V = (weight + 2 * adapter.B @ adapter.A).detach().unflatten(1, (-1, config.group_size))
    v = (V - adapter.b.detach()[..., None]) / adapter.q.detach()[..., None]
    return v, v.clamp(-N, N - 1).round(), (v >= -N) & (v <= N - 1)


@each("bits", [2, 3, 4, 8])
def test_it_begins_as_rounding_to_nearest_with_a_grid_that_cuts_nothing_off(bits):
    site, weight = make(bits, moved=False)
    N = 2 ** (bits - 1)
    groups = weight.unflatten(1, (-1, 8))
    step = torch.maximum(groups.amin(-1).abs() / N, groups.amax(-1).abs() / (N - 1))[..., None]
    nearest = (groups / step).round() * step
    torch.testing.assert_close(site.merged_weight(), nearest.flatten(1))
    assert (site.merged_weight() - weight).abs().max() <= step.max() / 2 + 1e-6


def test_gradients_are_the_four_of_the_paper():
    site, weight = make()
    adapter, x, seed = site.adapter, torch.randn(7, 32), torch.randn(7, 24)
    (site(x) * seed).sum().backward()
    v, n, inside = codes(site, weight)
    assert 0.05 < 1 - inside.float().mean() < 0.5  # both kinds are there
    G = (seed.mT @ x).unflatten(1, (-1, 8))
    kept = (G * inside).flatten(1)
    A, B = adapter.A.detach(), adapter.B.detach()
    expected = {
        "A": 2 * B.mT @ kept,
        "B": 2 * kept @ A.mT,
        "q": (G * torch.where(inside, n - v, n)).sum(-1),
        "b": (G * ~inside).sum(-1),
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(adapter.get_parameter(name).grad, gradient, atol=1e-4, rtol=1e-4)


@each("bits", [2, 3, 4, 8])
def test_the_merged_weight_is_integers_and_is_what_training_multiplies_with_to_the_bit(bits):
    site, weight = make(bits)
    adapter, merged = site.adapter, site.merged_weight()
    _, n, _ = codes(site, weight)
    assert len(n.unique()) <= 2**bits
    q, b = (tensor.detach()[..., None] for tensor in (adapter.q, adapter.b))
    assert torch.equal(merged, (n * q + b).flatten(1))
    x = torch.randn(5, 32)
    assert torch.equal(site(x), F.linear(x, merged))


def test_in_half_precision_the_weight_is_rounded_once():
    site, _ = make(dtype=torch.bfloat16)
    x = torch.randn(5, 32).bfloat16()
    assert torch.equal(site(x), F.linear(x, site.merged_weight().bfloat16()))


def test_the_pass_keeps_its_input_and_nothing_of_the_size_of_a_weight():
    site, _ = make(out=64, width=64)
    x, kept = torch.randn(3, 64), []
    held = {id(p) for p in site.adapter.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    assert [t.numel() for t in kept if id(t) not in held and t.numel() > 64 * 8] == []
    assert sum(t.numel() for t in kept) == x.numel() + sum(p.numel() for p in site.adapter.parameters())


def test_a_group_of_zeros_and_a_step_of_zero_are_finite():
    torch.manual_seed(0)
    site, weight = make(moved=False)
    adapter = site.adapter
    adapter.start(torch.zeros_like(weight))
    with torch.no_grad():
        adapter.q[0, 0] = 0
        adapter.B.normal_()
    site(torch.randn(4, 32)).square().sum().backward()
    assert site.merged_weight().isfinite().all()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    assert adapter.q.grad[1].abs().sum() > 0  # it can grow


def test_training_finds_a_better_grid_than_rounding_to_nearest():
    """At 2 bits the output that the rounding spoiled comes back by far."""
    site, weight = make(bits=2, moved=False)
    x = torch.randn(64, 32)
    y = F.linear(x, weight)
    optimizer = torch.optim.Adam(site.adapter.parameters(), lr=0.03)
    before = F.mse_loss(site(x), y).item()
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(site(x), y).backward()
        optimizer.step()
    assert F.mse_loss(site(x), y).item() < 0.5 * before


def test_groups_end_where_rows_do():
    with pytest.raises(ValueError, match=r"group_size 24 does not divide the 32 inputs; .* such as 8"):
        make(group_size=24)


def test_the_count_is_that_of_the_papers_rank_and_groups_at_llama_7b():
    """Rank 4 and groups of 128 at a 4096 x 4096 layer."""
    config = L4Q.Config(method="l4q")
    assert L4Q.count(config, Site("a", 4096, 4096)) == 4 * 8192 + 2 * 4096 * 32
