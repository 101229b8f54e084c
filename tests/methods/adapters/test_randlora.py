"""RandLoRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters._bases import Bases
from lrft.methods.adapters.randlora import RandLoRA
from lrft.methods.quant.none import Dense

SHAPES = [(24, 16), (16, 24), (20, 20)]  # out, in


def make(shape=SHAPES[0], rank=4, **settings):
    torch.manual_seed(0)
    out, width = shape
    weight = torch.randn(out, width) / width**0.5
    adapter = RandLoRA(RandLoRA.Config(method="randlora", rank=rank, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.Lambda.normal_()
        adapter.Gamma.normal_()
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_papers_sum_of_scaled_random_products(shape):
    """With the random columns in the order in which the authors' code pairs them."""
    site, weight = make(shape, rank=4)
    adapter, small, large = site.adapter, min(shape), max(shape)
    A = adapter.bases[0].A.float()[:, 0, :small]
    columns = adapter.bases[0].B.float()[:large].flatten(1)
    n = len(adapter.Gamma)
    total = torch.zeros(large, small)
    for j in range(n):
        B_j = columns[:, [i * n + j for i in range(4)]]
        total += B_j @ torch.diag(adapter.Lambda[:, j]) @ A @ torch.diag(adapter.Gamma[j])
    total *= 2 / n**0.5
    change = adapter.delta_weight(weight)
    torch.testing.assert_close(change, total if shape[0] >= shape[1] else total.mT, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5, 16])
def test_the_change_has_full_rank_whatever_the_rank_of_the_products(rank):
    site, weight = make(rank=rank)
    assert torch.linalg.matrix_rank(site.adapter.delta_weight(weight)) == 16


def test_a_larger_rank_trains_fewer_numbers_and_counts_are_pefts():
    counts = []
    for rank in (15, 30, 60):
        config = RandLoRA.Config(method="randlora", rank=rank)
        counts.append(RandLoRA.count(config, Site("a", 4096, 4096)))
    assert counts == sorted(counts, reverse=True)
    config = RandLoRA.Config(method="randlora", rank=32)
    assert 28 * sum(RandLoRA.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 9_289_728


def test_the_first_step_moves_lambda_alone():
    site, _ = make()
    site.adapter.reset()
    site(torch.randn(3, 16)).square().sum().backward()
    assert site.adapter.Lambda.grad.abs().min() > 0 and not site.adapter.Gamma.grad.any()
    assert (site.adapter.Gamma == 1 / 16).all() and not site.adapter.Lambda.any()


def test_all_sites_cut_from_one_pair_that_stands_for_the_widest():
    config = RandLoRA.Config(method="randlora", rank=4)
    sites = {name: Site(name, width, out) for name, (out, width) in zip("abc", SHAPES, strict=True)}
    shared = RandLoRA.shared(config, sites, 0)
    assert isinstance(shared, Bases) and shared.A.shape == (4, 1, 24) and shared.B.shape == (24, 6, 4)
    made = [RandLoRA.at(config, site, shared) for site in sites.values()]
    assert all(adapter.bases[0] is shared for adapter in made)
    assert {key for adapter in made for key in adapter.state_dict()} == {"Lambda", "Gamma"}


@pytest.mark.parametrize(("kind", "zeros"), [("dense", 0.0), ("sparse", 2 / 3), ("very_sparse", 0.9)])
def test_bases_have_unit_variance_and_the_zeros_they_say(kind, zeros):
    torch.manual_seed(0)
    config = RandLoRA.Config(method="randlora", rank=10, bases=kind)
    shared = RandLoRA.shared(config, {"a": Site("a", 100, 200)}, 0)
    for matrix in shared.buffers():
        assert matrix.float().std() == pytest.approx(1, abs=0.01)
    assert (shared.B == 0).float().mean() == pytest.approx(zeros, abs=0.02)


@pytest.mark.parametrize("settings", [{}, {"alpha": 7.0}, {"alpha": 40.0, "sqrt_bases": False}])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_pefts(shape, settings):
    peft = pytest.importorskip("peft")
    site, weight = make(shape, rank=3, **settings)
    keys = dict(site.adapter.peft.keys(site.adapter.config, False))
    keys.pop("peft_type")
    model = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0], bias=False))
    model[0].weight.data.copy_(weight)
    theirs = peft.get_peft_model(model, peft.RandLoraConfig(target_modules=["0"], **keys))
    layer, tensors = theirs.base_model.model[0], site.adapter.peft.tensors(site.adapter, None)
    for name, tensor in site.adapter.bases[0].peft_tensors().items():
        their = getattr(layer, name)
        assert their["default"].shape == tensor.shape
        their["default"] = tensor.float()
    layer.randlora_lambda["default"].data.copy_(tensors["Lambda"])
    layer.randlora_gamma["default"].data.copy_(tensors["Gamma"])
    x = torch.randn(5, shape[1])
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"alpha": 8.0}])
def test_the_scale_is_that_of_the_authors_code(settings):
    site, _ = make(**settings)
    assert site.adapter.scaling == pytest.approx(2 / 4**0.5)
    assert make(alpha=80.0, sqrt_bases=False)[0].adapter.scaling == 20  # PEFT's default


@pytest.mark.parametrize("shape", SHAPES)
def test_no_scaled_basis_is_kept_for_the_backward_pass(shape):
    site, _ = make(shape)
    x, kept = torch.randn(3, shape[1]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= max(3 * max(shape), site.adapter.Gamma.numel())


def test_training_leaves_the_bases_as_they_were_and_a_loaded_pair_is_used():
    site, weight = make()
    shared = site.adapter.bases[0]
    before = {name: matrix.clone() for name, matrix in shared.named_buffers()}
    optimizer = torch.optim.AdamW(site.adapter.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(8, 16)
    site(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(matrix, before[name]) for name, matrix in shared.named_buffers())
    y = site(x)
    with torch.no_grad():
        shared.B.mul_(2)
    moved = F.linear(x, site.adapter.delta_weight(weight))
    torch.testing.assert_close(site(x), F.linear(x, weight) + moved, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(site(x), y)


def test_a_rank_beyond_the_weight_is_refused_with_the_largest_that_works():
    with pytest.raises(ValueError, match="use at most 16"):
        make(rank=17)
