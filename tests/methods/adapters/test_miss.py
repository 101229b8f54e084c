"""MiSS's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.miss import MiSS
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = MiSS(MiSS.Config(method="miss", rank=rank, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.D.normal_()
    return Adapted(Dense(weight), adapter), weight


def test_all_slices_of_the_input_share_their_columns():
    site, weight = make(width=18)
    change = site.adapter.delta_weight(weight)
    for column in range(18):
        torch.testing.assert_close(change[:, column], site.adapter.D[column % 4])


def test_it_is_a_lora_whose_A_is_frozen_at_identities_side_by_side():
    site, _ = make(width=18)
    A, _ = site.adapter.factors()
    assert torch.equal(A[:, :4], torch.eye(4)) and torch.equal(A[:, 4:8], torch.eye(4))
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=4.0), site.adapter.site)
    lora.load_state_dict({"A": A, "B": site.adapter.D.mT})
    x = torch.randn(5, 18)
    torch.testing.assert_close(site(x), lora(x, site.base), atol=1e-5, rtol=1e-5)


def test_the_gradient_is_there_at_step_0():
    site, _ = make()
    site.adapter.reset()
    site(torch.randn(3, 16)).square().sum().backward()
    assert site.adapter.D.grad.abs().min() > 0


@pytest.mark.parametrize(("rank", "published"), [(16, 21.7), (32, 43.5), (64, 87.0), (128, 174.0)])
def test_counts_are_those_of_the_papers_table_7(rank, published):
    outputs = 32 * (4 * 4096 + 2 * 11008 + 4096)  # all linear layers of LLaMA-2-7B
    config = MiSS.Config(method="miss", rank=rank)
    assert MiSS.count(config, Site("a", 4096, outputs)) / 1e6 == pytest.approx(published, abs=0.1)


def test_mini_shares_columns_along_the_outputs_too():
    site, weight = make(mini_rank=6)
    change = site.adapter.delta_weight(weight)
    assert site.adapter.D.shape == (4, 6) and torch.equal(change[:6], change[6:12])
    assert MiSS.count(site.adapter.config, site.adapter.site) == 24


def test_only_the_summed_input_is_kept_for_the_backward_pass():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 4


@pytest.mark.parametrize("settings", [{"width": 16}, {"width": 18}, {"width": 16, "mini_rank": 6}])
def test_it_is_pefts(in_peft, settings):
    site, weight = make(**settings)
    theirs = in_peft(site, weight, "MissConfig")
    theirs.base_model.model[0].miss_block["default"].data.copy_(site.adapter.D)
    x = torch.randn(2, 5, weight.shape[1])
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_the_slices_and_not_on_the_base():
    site, weight = make(dropout=0.5)
    x = torch.randn(2000, 16)
    moved = site(x) - F.linear(x, weight)
    dropped = (x * 2 * (torch.rand_like(x) > 0.5)).unflatten(-1, (-1, 4)).sum(-2) @ site.adapter.D
    torch.testing.assert_close(moved.std(), dropped.std(), atol=0.1, rtol=0.05)
    with torch.no_grad():
        site.adapter.D.zero_()
    torch.testing.assert_close(site(x), F.linear(x, weight))


def test_impossible_shapes_are_refused_with_what_works():
    with pytest.raises(ValueError, match="use at most 16"):
        make(rank=17)
    with pytest.raises(ValueError, match="divisor"):
        make(mini_rank=7)
