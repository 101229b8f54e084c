"""DiaBlo's own statements: counts published with it, and the blocks of the full gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.diablo import DiaBlo
from lrft.methods.quant.none import Dense

LLAMA = {  # in, out of q, k, v, up, down, and layers
    "LLaMA-2-7B": ([(4096, 4096)] * 3 + [(4096, 11008), (11008, 4096)], 32, 6_738_415_616),
    "LLaMA-3-8B": ([(4096, 4096), *[(4096, 1024)] * 2, (4096, 14336), (14336, 4096)], 32, 8_030_261_248),
}


def make(blocks=4, out=24, width=16):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = DiaBlo(DiaBlo.Config(method="diablo", blocks=blocks), Site("a", width, out))
    with torch.no_grad():
        adapter.D.normal_()
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize(
    ("model", "blocks", "counted", "percent"),
    [
        ("LLaMA-2-7B", 64, 70_254_592, 1.04),
        ("LLaMA-2-7B", 128, 35_127_296, 0.52),
        ("LLaMA-3-8B", 64, 71_303_168, None),
    ],
)
def test_counts_are_the_published_shares_of_the_base(model, blocks, counted, percent):
    shapes, layers, base = LLAMA[model]
    config = DiaBlo.Config(method="diablo", blocks=blocks)
    found = layers * sum(DiaBlo.count(config, Site("a", *shape)) for shape in shapes)
    assert found == counted
    assert percent is None or round(100 * found / base, 2) == percent


def test_one_block_is_the_whole_weight():
    site, _ = make(blocks=1)
    assert torch.equal(site.adapter.change(), site.adapter.D[0].mT)


@pytest.mark.parametrize(("out", "width"), [(24, 16), (22, 15), (3, 16)])
def test_its_gradient_is_the_diagonal_blocks_of_the_full_one(out, width):
    site, _ = make(out=out, width=width)
    weight = site.merged_weight().requires_grad_(True)
    x, seed = torch.randn(5, width), torch.randn(5, out)
    (site(x) * seed).sum().backward()
    (F.linear(x, weight) * seed).sum().backward()
    for n, own in enumerate(site.adapter.D.grad):
        i, o = own.shape
        full = weight.grad[o * n : o * n + o, i * n : i * n + i].mT
        torch.testing.assert_close(own[: full.shape[0], : full.shape[1]], full, atol=1e-5, rtol=1e-5)


def test_nothing_outside_the_blocks_changes_and_the_rank_can_be_full():
    site, _ = make()
    change = site.adapter.change()
    inside = torch.block_diag(*[torch.ones(6, 4)] * 4).bool()
    assert not change[~inside].any() and change[inside].all()
    assert torch.linalg.matrix_rank(change) == 16


def test_sides_that_do_not_divide_are_padded_and_cut_as_in_the_authors_code():
    """in 10, out 7, N 4: slices of 3 and 2, so that 4 of each are needed; the last have 1 feature, 1 output."""
    site, _ = make(out=7, width=10)
    assert site.adapter.D.shape == (4, 3, 2)
    assert site.adapter.change().shape == (7, 10)
    torch.testing.assert_close(site.adapter.change()[6, 9], site.adapter.D[3, 0, 0])
