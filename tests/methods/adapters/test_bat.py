"""Bat's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.bat import Bat
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16, dtype=torch.float32):
    torch.manual_seed(0)
    weight = (torch.randn(out, width) / width**0.5).to(dtype)
    adapter = Bat(Bat.Config(method="bat", rank=rank), Site("a", width, out))
    with torch.no_grad():
        adapter.D.normal_(std=0.3)
    return Adapted(Dense(weight), adapter), weight


def test_every_block_is_turned_by_the_matrix_of_its_row():
    site, weight = make()
    merged, D = site.merged_weight(), site.adapter.D
    for i in range(6):
        for j in range(4):
            rows, columns = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
            block = weight[rows, columns]
            torch.testing.assert_close(merged[rows, columns], block @ (torch.eye(4) + D[i]) + D[i])


def test_it_can_be_undone_by_the_inverse_of_identity_plus_D():
    site, weight = make()
    merged, D = site.merged_weight(), site.adapter.D
    rows = merged[:4].unflatten(1, (-1, 4))  # first row of blocks
    undone = (rows - D[0][:, None]) @ torch.linalg.inv(torch.eye(4) + D[0])
    torch.testing.assert_close(undone.flatten(1), weight[:4], atol=1e-4, rtol=1e-4)


def test_the_change_depends_on_the_weight_and_has_full_rank():
    site, weight = make()
    change = site.adapter.delta_weight(weight)
    assert torch.linalg.matrix_rank(change) == 16
    assert not torch.allclose(change, site.adapter.delta_weight(2 * weight))


def test_the_count_is_pefts_for_llama_3_2_3b():
    config = Bat.Config(method="bat", rank=64)
    assert 28 * sum(Bat.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 7_340_032


def test_it_is_pefts(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "MissConfig")
    theirs.base_model.model[0].miss_block["default"].data.copy_(site.adapter.D)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_a_change_below_the_precision_of_the_weight_is_seen():
    site, weight = make(dtype=torch.bfloat16)
    with torch.no_grad():
        site.adapter.D.mul_(1e-4)
    x = torch.ones(1, 16, dtype=torch.bfloat16) * 64
    exact = (site.merged_weight() - weight.float()) @ x[0].float()
    summed = torch.nn.functional.linear(x, site.merged_weight().to(torch.bfloat16))
    moved = site(x).float() - torch.nn.functional.linear(x, weight).float()
    through_the_weight = summed.float() - torch.nn.functional.linear(x, weight).float()
    assert (moved - exact).abs().mean() < (through_the_weight - exact).abs().mean()


def test_the_change_is_not_kept_for_the_backward_pass():
    site, _ = make(out=64, width=64)
    x, kept = torch.randn(2, 64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) < 64 * 64


def test_impossible_shapes_are_refused_with_what_works():
    with pytest.raises(ValueError, match="does not divide the 16 inputs; use a common divisor of 16 and 24"):
        make(rank=3)
    with pytest.raises(ValueError, match="outputs"):
        make(rank=16)
