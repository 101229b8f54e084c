"""Compacter's own statements: the Kronecker products, the one shared factor, and published counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.block import AdaptedBlock
from lrft.core.params import Site
from lrft.methods.adapters.compacter import Compacter

HIDDEN = 16


class Attention(nn.Module):
    """Gives hidden states and weights, as an attention does."""

    def forward(self, hidden_states, scale=1.0):
        return scale * hidden_states, "weights"


def make(moved=True, kinds=("attention", "mlp"), **settings):
    torch.manual_seed(0)
    config = Compacter.Config(method="compacter", **{"bottleneck": 8, "rank": 2, **settings})
    sites = {kind: Site(kind, HIDDEN, HIDDEN, kind=kind) for kind in kinds}
    shared = Compacter.shared(config, sites, HIDDEN)
    adapters = [Compacter.at(config, site, shared) for site in sites.values()]
    for parameter in (p for part in (shared, *adapters) for p in part.parameters() if moved):
        nn.init.normal_(parameter)
    return shared, adapters


def test_its_maps_are_sums_of_kronecker_products_on_the_right_of_x():
    shared, (adapter, _) = make()
    maps = [
        sum(torch.kron(C, S @ T) for C, S, T in zip(shared.C, part("S"), part("T"), strict=True))
        for part in (
            lambda factor: adapter.get_parameter(f"{factor}_down"),
            lambda factor: adapter.get_parameter(f"{factor}_up"),
        )
    ]
    h = torch.randn(5, HIDDEN)
    z = F.gelu(h @ maps[0] + adapter.b_down, approximate="tanh")
    torch.testing.assert_close(adapter.behind(h), h + z @ maps[1] + adapter.b_up, atol=1e-3, rtol=1e-4)
    assert maps[0].shape == (HIDDEN, 8) and maps[1].shape == (8, HIDDEN)


def test_all_blocks_share_one_left_factor_which_none_of_them_holds():
    shared, (first, second) = make()
    assert first.rule[0] is second.rule[0] is shared
    assert [name for name, _ in shared.named_parameters()] == ["C"] and "C" not in dict(
        first.named_parameters()
    )
    (first.behind(torch.randn(5, HIDDEN)) + second.behind(torch.randn(5, HIDDEN))).sum().backward()
    assert shared.C.grad.all()


def test_it_stands_behind_the_block_and_leaves_what_else_an_attention_gives():
    _, (adapter, _) = make()
    site, h = AdaptedBlock(Attention(), adapter), torch.randn(2, 3, HIDDEN)
    y, weights = site(hidden_states=h, scale=2.0)
    assert weights == "weights"
    torch.testing.assert_close(y, adapter.behind(2.0 * h))
    site.enabled = False
    assert torch.equal(site(h)[0], h)


def test_at_the_start_it_is_the_block_but_for_a_ten_millionth():
    torch.manual_seed(0)
    adapter = Compacter(Compacter.Config(method="compacter"), Site("mlp", 768, 768, kind="mlp"))
    assert 0.7e-4 < adapter.rule[0].C.std() < 1.3e-4
    h = torch.randn(50, 768, dtype=torch.float64)
    assert 0 < (adapter.behind(h) - h).norm() / h.norm() < 1e-7


def test_factors_start_as_the_authors_draw_them():
    _, (adapter,) = make(moved=False, kinds=("mlp",), bottleneck=400, rank=300)
    bound = 2**0.5 * (6 / (100 + 300)) ** 0.5
    for name in ("T_down", "S_up"):
        tensor = adapter.get_parameter(name)
        assert tensor.shape[0] == 4 and 0.99 * bound < tensor.abs().max() <= bound


@pytest.mark.parametrize(
    ("adapters", "published"), [(48, 0.073), (24, 0.047)], ids=["compacter", "compacter++"]
)
def test_shares_of_t5_base_are_those_of_the_papers_table(adapters, published):
    count = Compacter.count(Compacter.Config(method="compacter"), Site("mlp", 768, 768, kind="mlp"))
    norms = 47_616
    assert count == 2_376
    assert round(100 * (adapters * count + 4**3 + norms) / 222_903_552, 3) == published


@pytest.mark.parametrize(
    ("settings", "message"), [({"division": 3}, "use 1"), ({"bottleneck": 6}, "bottleneck, 6")]
)
def test_a_division_that_does_not_divide_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
