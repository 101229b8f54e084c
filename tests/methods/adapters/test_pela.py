"""PELA's layers beside the authors' surgery written out: ranks, factors, counts, and the teacher that stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted, adapters_off
from lrft.core.params import Site
from lrft.methods.adapters.pela import PELA, rank_of
from lrft.registry.axes import QUANTIZERS


def made(out, into, bias=True, **settings):
    torch.manual_seed(0)
    config = PELA.Config(method="pela", **settings)
    adapter = PELA(config, Site("layer", into, out, bias))
    base = QUANTIZERS.get("none")(
        torch.randn(out, into), torch.randn(out) if bias else None, config=QUANTIZERS.settings("none")
    )
    adapter.start(base.weight())
    return Adapted(base, adapter)


@pytest.mark.parametrize("compress", [1.5, 2.0, 3.0])
def test_a_layer_is_the_authors_pair_of_layers(compress):
    site = made(24, 40, compress=compress)
    W, b = site.base.weight(), site.base.bias
    rank = int(24 * 40 / (compress * 64))  # of their ModuleLowRank
    u, s, vh = torch.linalg.svd(W.mT, full_matrices=True)
    first, second = nn.Linear(40, rank, bias=False), nn.Linear(rank, 24)
    first.weight.data = (u[:, :rank] * s[:rank].sqrt()).mT
    second.weight.data = (s[:rank].sqrt()[:, None] * vh[:rank]).mT
    second.bias.data = b
    x = torch.randn(3, 40)
    torch.testing.assert_close(site(x), second(first(x)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(F.linear(x, site.merged_weight(), b), second(first(x)), rtol=1e-4, atol=1e-4)
    kept = sum(p.numel() for p in site.adapter.parameters())
    assert kept == PELA.count(site.adapter.config, site.adapter.site) == rank * 64
    assert kept <= 24 * 40 / compress < kept + 64


def test_the_best_product_of_its_rank_is_the_start_and_the_base_is_the_teacher():
    site = made(24, 40, compress=2.0)
    W = site.base.weight()
    S = torch.linalg.svdvals(W)
    rank = site.adapter.A.shape[0]
    torch.testing.assert_close(
        (site.merged_weight() - W).square().sum(), S[rank:].square().sum(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(site.adapter.A @ site.adapter.A.mT, torch.diag(S[:rank]), rtol=1e-3, atol=1e-3)
    x = torch.randn(3, 40)
    with adapters_off(site):
        torch.testing.assert_close(site(x), F.linear(x, W, site.base.bias))


def test_a_weight_of_that_rank_is_reproduced():
    site = made(24, 40, bias=False, compress=2.0)
    low = torch.randn(24, 7) @ torch.randn(7, 40)
    site.adapter.start(low)
    torch.testing.assert_close(site.adapter.B @ site.adapter.A, low, rtol=1e-3, atol=1e-3)


def test_no_activation_of_the_width_of_the_weight_is_kept():
    site, saved = made(24, 40, compress=2.0), []
    x = torch.randn(3, 40, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        site(x).sum().backward()
    assert saved and max(t.numel() for t in saved) <= 7 * 40


def test_a_layer_too_small_for_a_rank_is_refused():
    assert rank_of(PELA.Config(method="pela", compress=3.0), Site("gate", 64, 2)) == 0
    with pytest.raises(ValueError, match="leaves no rank of 2 x 64"):
        made(2, 64, compress=3.0)
