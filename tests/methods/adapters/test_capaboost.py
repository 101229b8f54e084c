"""CapaBoost's own statements, and its sum written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.capaboost import CapaBoost
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense


def make(out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = CapaBoost.Config(method="capaboost", **{"rank": 4, "copies": 3, **settings})
    adapter = CapaBoost(config, Site("a", width, out))
    with torch.no_grad():
        adapter.B.normal_()
    return Adapted(Dense(weight), adapter), weight


def written_out(adapter):
    M, N = adapter.get_buffer("M"), adapter.get_buffer("N")
    return adapter.scaling * sum((n * adapter.B) @ (m * adapter.A) for m, n in zip(M, N, strict=True))


def test_output_and_gradients_are_those_of_the_tied_copies():
    site, weight = make()
    adapter, x, seed = site.adapter, torch.randn(5, 16), torch.randn(5, 24)
    y = F.linear(x, weight + written_out(adapter))
    expected = torch.autograd.grad((y * seed).sum(), [adapter.A, adapter.B])
    got = site(x)
    torch.testing.assert_close(got, y, atol=1e-4, rtol=1e-4)
    (got * seed).sum().backward()
    for mine, theirs in zip((adapter.A.grad, adapter.B.grad), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_the_rank_is_that_of_all_copies_at_the_parameters_of_one():
    site, _ = make()
    assert torch.linalg.matrix_rank(site.adapter.change()) == 12
    A, B = site.adapter.factors()
    assert A.shape == (12, 16) and B.shape == (24, 12)
    assert CapaBoost.count(site.adapter.config, site.adapter.site) == 4 * (16 + 24)


@pytest.mark.parametrize(("density", "ones"), [(0.5, 32), (0.3, 19), (1.0, 64)])
def test_every_mask_has_its_number_of_ones_and_masks_differ(density, ones):
    site, _ = make(density=density)
    M, N = site.adapter.get_buffer("M"), site.adapter.get_buffer("N")
    assert M.flatten(1).sum(1).tolist() == [ones] * 3
    assert N.flatten(1).sum(1).tolist() == [int(density * 96)] * 3
    assert density == 1 or not torch.equal(M[0], M[1])


def test_two_of_every_four_that_follow_one_another_are_kept_and_every_pair_is_drawn():
    site, _ = make(rank=6, width=64, copies=4, masks="2_of_4")
    seen = set()
    for name in "MN":
        masks = site.adapter.get_buffer(name)
        groups = masks.reshape(-1, 4)
        assert groups.sum(1).eq(2).all() and not torch.equal(masks[0], masks[1])
        seen |= {tuple(group) for group in groups.tolist()}
    assert len(seen) == 6
    torch.testing.assert_close(site.adapter.change(), written_out(site.adapter), atol=1e-5, rtol=1e-5)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="masks 2_of_4 need entries by fours, and a factor is 3 x 6"):
        make(rank=3, width=6, masks="2_of_4")
    with pytest.raises(ValueError, match=r"density is 0.3, and of masks 2_of_4 it is 0.5; leave it out"):
        make(density=0.3, masks="2_of_4")


def test_an_entry_that_no_mask_holds_does_not_move():
    site, _ = make()
    site(torch.randn(5, 16)).square().sum().backward()
    for mask, parameter in (("M", site.adapter.A), ("N", site.adapter.B)):
        outside = ~site.adapter.get_buffer(mask).any(0)
        assert outside.any() and not parameter.grad[outside].any() and parameter.grad[~outside].all()


def test_one_copy_of_all_entries_is_lora():
    site, weight = make(copies=1, density=1.0)
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=16), Site("a", 16, 24))
    lora.load_state_dict({"A": site.adapter.A, "B": site.adapter.B})
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), Adapted(Dense(weight), lora)(x))


def test_every_copy_draws_its_own_dropout():
    """With two copies of all entries the term is 0 only where both dropped everything: in 1 of 4 and not of 2."""
    site, _ = make(out=3, width=1, rank=1, copies=2, density=1.0, dropout=0.5)
    x = torch.ones(4000, 1)
    term = (site(x) - site.base(x)) / site.adapter.change().T
    shares = [float((term[:, 0] - value).abs().lt(1e-3).float().mean()) for value in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(shares, [0.25, 0.5, 0.25], atol=0.03, rtol=0)


def test_masked_copies_are_not_kept_for_the_backward_pass():
    site, _ = make(out=40, width=40, copies=8)
    x, kept = torch.randn(2, 40), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 4 * 40  # a factor itself, and none of 8 masked ones
