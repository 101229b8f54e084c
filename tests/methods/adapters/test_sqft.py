"""SQFT's own statements: what is pruned stays pruned, what is rounded stays on its grid, and what Wanda keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters._rank_draws import RankDraws
from lrft.methods.adapters.sqft import SQFT
from lrft.methods.inits.wanda import Wanda
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import RecipeError
from tests.each import each


def make(out=24, width=32, weight=None, storage=Dense, moved=True, name="a.q", **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) if weight is None else weight
    config = SQFT.Config(method="sqft", rank=4, alpha=8.0, dropout=0.0, group_size=8).model_copy(
        update=settings
    )
    adapter, base = SQFT(config, Site(name, width, out)), storage(weight)
    adapter.start(base.weight())
    if moved:
        with torch.no_grad():
            adapter.B.normal_(std=0.3)
    return Adapted(base, adapter), weight


@each("settings", [{}, {"bits": 4, "onto": "exact"}, {"bits": 2, "onto": "exact"}])
def test_the_merge_has_the_zeros_of_the_pruned_weight_and_no_fewer(settings):
    site, weight = make(**settings)
    kept = site.adapter.kept()
    assert torch.equal(kept.sum(1), torch.full((24,), 16))
    merged = site.merged_weight()
    assert not merged[~kept].any()
    assert torch.equal(merged.bfloat16() != 0, merged != 0)
    smallest = weight.abs().masked_fill(~kept, torch.inf).amin(1)
    assert (weight.abs().masked_fill(kept, 0).amax(1) <= smallest).all()


def test_of_weights_of_one_size_the_first_are_pruned_as_in_wandas_code():
    site, _ = make(weight=torch.ones(24, 32))
    assert torch.equal(site.adapter.kept(), (torch.arange(32) >= 16).expand(24, 32))


def test_without_bits_it_is_a_masked_lora_on_the_pruned_weight():
    site, weight = make()
    adapter = site.adapter
    M = adapter.kept()
    torch.testing.assert_close(site.merged_weight(), (weight + 2 * adapter.B @ adapter.A) * M)
    x, seed = torch.randn(5, 32), torch.randn(5, 24)
    (site(x) * seed).sum().backward()
    G = (seed.mT @ x) * M
    torch.testing.assert_close(adapter.B.grad, 2 * G @ adapter.A.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter.A.grad, 2 * adapter.B.mT @ G, atol=1e-4, rtol=1e-4)


@each("onto", ["rounded", "exact"])
@each("bits", [2, 4])
def test_with_bits_it_is_the_authors_layer_on_the_rounded_weight_or_on_the_exact_one(bits, onto):
    """Their forward pass on weights turned around: what is 0 of the weight that is added to stays 0."""
    site, weight = make(bits=bits, onto=onto, moved=False)
    adapter = site.adapter
    M = SQFT.kept(make()[0].adapter)  # of the pruning alone
    scales, zeros = (t[..., 0].repeat_interleave(8, 1).mT for t in (adapter.q, adapter.z))

    def rounded(V):
        return scales * (((V.mT + zeros * scales) / scales).round().clamp(0, 2**bits - 1) - zeros)

    start = rounded(weight * M).mT if onto == "rounded" else weight * M
    A, B = (p.detach().clone().requires_grad_() for p in (adapter.A, adapter.B))
    ours, theirs = (torch.optim.AdamW(p, lr=0.05) for p in (adapter.parameters(), (A, B)))
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        x, seed = torch.randn(5, 32, generator=generator), torch.randn(5, 24, generator=generator)
        merged = (start + 2 * B @ A * (start != 0)).mT
        y = x @ (merged + (rounded(merged.mT) - merged).detach())
        torch.testing.assert_close(site(x), y, atol=1e-4, rtol=1e-4)
        for optimizer, found in ((ours, site(x)), (theirs, y)):
            optimizer.zero_grad()
            (found * seed).sum().backward()
            optimizer.step()
    torch.testing.assert_close(adapter.A, A, atol=1e-4, rtol=1e-4)
    assert not site.merged_weight()[start == 0].any() and not adapter.kept()[start == 0].any()


@each("bits", [2, 3, 4, 8])
def test_with_bits_the_merge_is_integers_of_the_frozen_grid_and_the_forward_to_the_bit(bits):
    site, weight = make(bits=bits)
    adapter = site.adapter
    q, z = adapter.q, adapter.z
    M = adapter.kept()

    def integers(V):
        return ((V.unflatten(1, (-1, 8)) / q).round() + z).clamp(0, 2**bits - 1)

    def rounded(V):
        return ((integers(V) - z) * q).flatten(1)

    pruned = weight * SQFT.kept(make()[0].adapter)
    assert torch.equal(M, rounded(pruned) != 0)
    expected = rounded(rounded(pruned) + 2 * (adapter.B @ adapter.A).detach() * M)
    merged = site.merged_weight()
    assert (
        (merged - expected).abs() > 1e-5
    ).float().mean() < 0.01  # ties go to the even of the shifted number
    again = (merged.unflatten(1, (-1, 8)) / q + z).round()
    assert again.min() >= 0 and again.max() <= 2**bits - 1
    assert torch.equal((again - z) * q, merged.unflatten(1, (-1, 8)))
    x = torch.randn(5, 32)
    assert torch.equal(site(x), F.linear(x, merged))
    # from end to end of the group, with an exact 0 between
    groups = pruned.unflatten(1, (-1, 8))
    span = groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)
    assert torch.equal(q[..., 0], (span / (2**bits - 1)).half().float())
    assert torch.equal(z, z.round()) and z.min() >= 0 and z.max() <= 2**bits - 1


def test_gradients_pass_both_roundings_and_the_bounds():
    site, _ = make(bits=3)
    adapter = site.adapter
    with torch.no_grad():
        adapter.B.mul_(10)  # much is cut off
    x, seed = torch.randn(5, 32), torch.randn(5, 24)
    (site(x) * seed).sum().backward()
    G = (seed.mT @ x) * adapter.kept()
    torch.testing.assert_close(adapter.B.grad, 2 * G @ adapter.A.mT, atol=1e-4, rtol=1e-4)


@each("storage", ["none", "nf4_reference", "int8_reference"])
def test_a_sparse_base_gives_its_own_zeros_whatever_the_storage(storage):
    torch.manual_seed(1)
    weight = torch.randn(24, 64) * (torch.rand(24, 64) > 0.4)
    kind = QUANTIZERS.get(storage)
    site, _ = make(width=64, weight=weight, storage=kind, sparsity=None)
    assert torch.equal(site.adapter.kept(), site.base.weight() != 0)
    assert not site.merged_weight()[weight == 0].any()


def test_a_base_without_zeros_is_refused_where_its_zeros_are_asked_for():
    with pytest.raises(RecipeError, match=r"adapter\.sparsity: null takes the zeros .* a\.q has none"):
        make(sparsity=None)


def test_dropout_is_on_the_change_alone_and_with_bits_on_the_whole_map():
    for bits in (None, 4):
        site, _ = make(dropout=0.5, bits=bits)
        adapter, x = site.adapter, torch.randn(6, 32)
        torch.manual_seed(3)
        found = site(x)
        torch.manual_seed(3)
        seen = F.dropout(x, 0.5)
        if bits is None:
            pruned = adapter.pruned(site.base.weight())
            expected = F.linear(x, pruned) + F.linear(seen, adapter.masked())
        else:
            expected = F.linear(seen, site.merged_weight())
        torch.testing.assert_close(found, expected)
        site.eval()
        torch.testing.assert_close(site(x), F.linear(x, site.merged_weight()))


def test_ranks_are_drawn_by_layer_and_the_middle_one_is_merged():
    names = ["model.0.attn.q", "model.0.mlp.up", "model.10.mlp.experts.0.up", "model.1.attn.q", "lone"]
    parts = [(name, make(name=name, ranks=[2, 4, 3])[0]) for name in names]
    generator, seen = torch.Generator().manual_seed(0), set()
    run = SimpleNamespace(adapted=lambda: parts, generator=generator)
    draws = SQFT.timed(parts[0][1].adapter.config)
    assert isinstance(draws, RankDraws)
    for _ in range(12):
        draws.before_step(run)
        live = [site.adapter.live for _, site in parts]
        assert live[0] == live[1]
        seen.add(tuple(live[1:4]))
        draws.after_step(run)
        assert {site.adapter.live for _, site in parts} == {3}
    assert len(seen) > 6 and {rank for drawn in seen for rank in drawn} == {2, 3, 4}
    adapter, weight = parts[0][1].adapter, parts[0][1].base.weight()
    prefix = 2 * adapter.B[:, :3] @ adapter.A[:3]  # the scale is that of the largest rank
    torch.testing.assert_close(parts[0][1].merged_weight(), (weight + prefix) * adapter.kept())


def test_wanda_keeps_by_weight_times_the_norm_of_the_input():
    site, weight = make(moved=False)
    norms = torch.rand(32) * 10
    Wanda(Wanda.Config(method="wanda")).apply(site.adapter, weight, {"input_norm": norms}, Dense)
    score = weight.abs() * norms
    kept = site.adapter.kept()
    assert torch.equal(kept, score >= score.median(1, keepdim=True).values.nextafter(torch.tensor(torch.inf)))
    site.adapter.start(weight)
    assert torch.equal(site.adapter.kept(), kept)  # what an init chose stays


def test_what_does_not_go_together_is_refused_in_one_sentence():
    refused = {
        ("init=default",): r"init\.method: does not choose what adapter\.sparsity prunes; write wanda",
        ("adapter.sparsity=null",): r"adapter\.sparsity: null prunes nothing",
        ("adapter.ranks=[8,9]",): r"the largest is rank",
        ("adapter.onto=exact", "adapter.bits=null"): r"onto is of weights that are rounded; write bits",
        ("adapter.ranks=[8,4]", "model.compile=true"): r"model\.compile: adapter\.ranks",
    }
    for changes, message in refused.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe("smoke/sqft", ["model.name=x/y", *changes])


def test_beside_the_settings_of_a_lora_a_weight_costs_one_bit_for_the_mask():
    adapter = make(out=64, width=64)[0].adapter
    assert adapter.mask.nbytes == 64 * 64 // 8
    assert "mask" in adapter.state_dict()


def test_nothing_of_the_size_of_a_weight_is_kept_for_the_backward_pass():
    site, kept = make(out=64, width=64, bits=4)[0], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(torch.randn(3, 64))
    assert max(t.numel() for t in kept) == 4 * 64
