"""HiRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.hira import HiRA
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = HiRA(HiRA.Config(method="hira", rank=rank), Site("a", width, out))
    with torch.no_grad():
        adapter.B.normal_()
    return Adapted(Dense(weight), adapter), weight


def test_the_weight_divided_out_of_the_change_leaves_the_low_rank_matrix():
    site, weight = make()
    factor = site.merged_weight() / weight - 1
    assert torch.linalg.matrix_rank(factor, rtol=1e-4) == 4
    torch.testing.assert_close(factor, site.adapter.B @ site.adapter.A, atol=1e-4, rtol=1e-3)


def test_the_change_has_full_rank_though_its_factors_have_not():
    site, weight = make()
    assert torch.linalg.matrix_rank(site.adapter.delta_weight(weight)) == 16


def test_no_entry_that_is_0_moves():
    site, weight = make()
    weight[3, 5] = 0
    assert site.adapter.delta_weight(weight)[3, 5] == 0


@pytest.mark.parametrize(("rank", "published"), [(32, 9_175_040)])
def test_the_count_is_pefts_for_llama_3_2_3b(rank, published):
    config = HiRA.Config(method="hira", rank=rank)
    assert 28 * sum(HiRA.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == published


def test_it_is_pefts(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "HiraConfig")
    layer = theirs.base_model.model[0]
    assert not layer.hira_B["default"].any()
    layer.hira_A["default"].data.copy_(site.adapter.A)
    layer.hira_B["default"].data.copy_(site.adapter.B)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
