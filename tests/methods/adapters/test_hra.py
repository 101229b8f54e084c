"""HRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.hra import HRA
from lrft.methods.quant.none import Dense
from lrft.ops.low_rank import Branch, branch_linear


def make(rank=4, out=24, width=16, moved=True, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width).to(dtype)
    adapter = HRA(HRA.Config(method="hra", rank=rank, **settings), Site("a", width, out))
    if moved:
        with torch.no_grad():
            adapter.V.normal_()
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize("moved", [True, False])
def test_it_is_pefts_chain_of_reflections_with_pefts_gradient(in_peft, moved):
    site, weight = make(rank=6, moved=moved)
    theirs = in_peft(site, weight, "HRAConfig")
    u = theirs.base_model.model[0].hra_u["default"]
    u.data.copy_(site.adapter.V)
    x, seed = torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    (site(x) * seed).sum().backward()
    (theirs(x) * seed).sum().backward()
    torch.testing.assert_close(site.adapter.V.grad, u.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-5, rtol=1e-5
    )


def test_norms_and_angles_of_the_rows_stay_and_the_change_has_the_rank():
    site, weight = make()
    merged = site.merged_weight()
    torch.testing.assert_close(merged @ merged.mT, weight @ weight.mT, atol=1e-4, rtol=1e-5)
    assert torch.linalg.matrix_rank(merged - weight, rtol=1e-4) == 4


def test_equal_pairs_are_no_change_and_yet_have_a_gradient():
    site, weight = make(moved=False)
    assert torch.equal(site.adapter.V[:, ::2], site.adapter.V[:, 1::2])
    assert site.adapter.delta_weight(weight).abs().max() < 1e-6
    site(torch.randn(3, 16)).square().sum().backward()
    assert site.adapter.V.grad.abs().min() > 0


def test_a_pair_that_is_almost_equal_keeps_its_change_in_half_precision():
    """Two reflections that differ by a thousandth differ by less than bfloat16 can say of either."""
    site, weight = make(moved=False, dtype=torch.bfloat16)
    with torch.no_grad():
        site.adapter.V[:, 1::2] += 1e-4 * torch.randn(16, 2)
    x = torch.randn(64, 16).bfloat16()
    down, K = site.adapter.terms()
    term = branch_linear(x, None, Branch(down, weight.float() @ K, -1.0)).float()
    exact = x.float() @ site.adapter.delta_weight(weight.float()).mT
    assert (term - exact).norm() / exact.norm() < 0.02


def test_the_penalty_is_that_of_the_authors_code_and_0_switches_it_off():
    site, _ = make(orthogonality=0.5)
    V = site.adapter.V / site.adapter.V.norm(dim=0)
    torch.testing.assert_close(site.adapter.penalty(), 0.5 * torch.norm(torch.eye(4) - V.T @ V))
    assert make(orthogonality=0)[0].adapter.penalty() is None


def test_x_and_r_numbers_a_token_are_kept():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert sorted(size for size in kept if size >= 1000) == [1000 * 4, 1000 * 16]


def test_it_counts_the_vectors_of_the_inputs():
    assert HRA.count(HRA.Config(method="hra", rank=32), Site("a", 4096, 11008)) == 32 * 4096


def test_what_cannot_start_is_refused_with_what_can():
    with pytest.raises(ValueError, match="use 4"):
        make(rank=3)
    with pytest.raises(ValueError, match="use at most 16"):
        make(rank=18)
