"""GraLoRA's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.gralora import GraLoRA
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense


def make(rank=4, blocks=2, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    config = GraLoRA.Config(method="gralora", rank=rank, blocks=blocks, alpha=8.0, **settings)
    adapter = GraLoRA(config, Site("a", width, out))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return Adapted(Dense(weight), adapter), weight


def test_every_block_has_its_own_slices_of_the_shared_factors():
    site, weight = make(rank=6, blocks=2)
    change, A, B = site.adapter.delta_weight(weight), site.adapter.A, site.adapter.B
    for j in range(2):
        for n in range(2):
            block = change[12 * j : 12 * j + 12, 8 * n : 8 * n + 8]
            torch.testing.assert_close(
                block, 8 / 6 * B[j][:, 3 * n : 3 * n + 3] @ A[n][3 * j : 3 * j + 3], atol=1e-5, rtol=1e-4
            )


def test_with_one_block_it_is_lora():
    site, _ = make(blocks=1)
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=8.0), site.adapter.site)
    lora.load_state_dict({"A": site.adapter.A[0], "B": site.adapter.B[0]})
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), lora(x, site.base), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("blocks", "hybrid", "rank"), [(1, 0, 4), (2, 0, 8), (4, 0, 16), (2, 3, 11)])
def test_the_rank_of_the_change_grows_with_the_grid(blocks, hybrid, rank):
    site, weight = make(blocks=blocks, hybrid_rank=hybrid, out=32, width=32)
    assert torch.linalg.matrix_rank(site.adapter.delta_weight(weight), atol=1e-3) == rank


def test_the_start_is_drawn_for_the_width_of_a_block():
    torch.manual_seed(0)
    config = GraLoRA.Config(method="gralora", rank=8, blocks=4)
    adapter = GraLoRA(config, Site("a", 256, 64))
    assert 0.9 / 8 < adapter.A.abs().max() <= 1 / 8  # 1 / sqrt(256 / 4)
    assert not adapter.B.any()


def test_the_count_is_pefts_for_llama_3_2_3b_whatever_the_grid():
    for blocks in (1, 2, 4):
        config = GraLoRA.Config(method="gralora", rank=32, blocks=blocks)
        assert 28 * sum(GraLoRA.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 9_175_040


@pytest.mark.parametrize("hybrid", [0, 3])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_it_is_pefts(blocks, hybrid):
    peft = pytest.importorskip("peft")
    site, weight = make(blocks=blocks, hybrid_rank=hybrid)
    keys = dict(site.adapter.peft.keys(site.adapter.config, False))
    keys.pop("peft_type")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    model[0].weight.data.copy_(weight)
    theirs = peft.get_peft_model(model, peft.GraloraConfig(target_modules=["0"], **keys))
    layer, tensors = theirs.base_model.model[0], site.adapter.peft.tensors(site.adapter, None)
    layer.gralora_A["default"].data.copy_(tensors["A"])
    layer.gralora_B["default"].data.copy_(tensors["B"])
    if hybrid:
        layer.gralora_A_general["default"].weight.data.copy_(tensors["Ah"])
        layer.gralora_B_general["default"].weight.data.copy_(tensors["Bh"])
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


def test_the_hybrid_part_draws_its_own_dropout():
    site, weight = make(hybrid_rank=4, dropout=0.5)
    with torch.no_grad():  # the two parts then cancel, unless they see different inputs
        site.adapter.A.copy_(torch.stack([torch.ones(4, 8)] * 2))
        site.adapter.B.fill_(1.0)
        site.adapter.Ah.fill_(-0.5)
        site.adapter.Bh.fill_(1.0)
    x = torch.ones(64, 16)
    assert (site(x) - F.linear(x, weight)).abs().mean() > 0.1
    torch.testing.assert_close(site.eval()(x), F.linear(x, weight), atol=1e-4, rtol=1e-4)


def test_impossible_grids_are_refused():
    with pytest.raises(ValidationError, match="does not divide the rank"):
        make(rank=5, blocks=2)
    with pytest.raises(ValueError, match="does not divide the 16 inputs"):
        make(rank=3, blocks=3)
    with pytest.raises(ValueError, match="does not divide the 25 outputs"):
        make(out=25)
