"""LoKr's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.lokr import LoKr, split
from lrft.methods.quant.none import Dense
from tests.methods.adapters.dropped_whole import check_dropped_or_left

# Settings -> the parameters there are at 24 x 32, where the sides are (4, 6) and (4, 8).
KINDS = {
    "low": ({"rank": 2}, {"w1", "w2a", "w2b"}),
    "both low": ({"rank": 1, "decompose_both": True}, {"w1a", "w1b", "w2a", "w2b"}),
    "full": ({"rank": 8}, {"w1", "w2"}),
    "full, scaled": ({"rank": 8, "scale_full": True}, {"w1", "w2"}),
    "factor": ({"rank": 2, "factor": 2}, {"w1", "w2a", "w2b"}),
    "zero": ({"rank": 2, "zero": "w1"}, {"w1", "w2a", "w2b"}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind="low", out=24, width=32, moved=True, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    config = LoKr.Config(method="lokr", **{"alpha": 3.0, **KINDS[kind][0], **settings})
    adapter = LoKr(config, Site("a", width, out))
    if moved:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_()
    return Adapted(Dense(weight), adapter), weight


@kinds
def test_it_is_pefts_and_so_is_its_form(in_peft, kind):
    """PEFT scales two full matrices too: what is written for it makes up for that."""
    site, weight = make(kind)
    assert {name for name, _ in site.adapter.named_parameters()} == KINDS[kind][1]
    theirs = in_peft(site, weight, "LoKrConfig")
    for name, tensor in type(site.adapter).peft.tensors_of(site.adapter).items():
        theirs.base_model.model[0].get_submodule(name)["default"].data.copy_(tensor)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


@kinds
@pytest.mark.parametrize("rows", [0.0, 0.5])
def test_two_small_products_have_the_gradients_of_the_kronecker_product(kind, rows):
    site, weight = make(kind, rank_dropout=rows, rank_dropout_scale=True)
    x = torch.randn(2, 5, 32, requires_grad=True)
    y, seed = site(x), torch.randn(2, 5, 24)
    left = ((y - F.linear(x, weight)).abs().sum((0, 1)) > 1e-5).float()
    assert (left.sum() == 24) == (rows == 0)
    dense = F.linear(x, weight + left[:, None] / left.mean() * site.adapter.change())
    torch.testing.assert_close(y, dense, atol=1e-4, rtol=1e-4)
    wanted = [x, *site.adapter.parameters()]
    for one, other in zip(
        torch.autograd.grad((y * seed).sum(), wanted),
        torch.autograd.grad((dense * seed).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_the_whole_change_is_dropped_or_left_as_it_is():
    check_dropped_or_left(*make(module_dropout=0.3))


def test_pefts_file_has_the_dropout_of_the_whole_change(in_peft):
    site, weight = make(module_dropout=0.3)
    layer = in_peft(site, weight, "LoKrConfig").base_model.model[0]
    assert layer.module_dropout["default"] == 0.3
    assert site.adapter.skipped and not make()[0].adapter.skipped  # first steps may give it no gradient


@kinds
def test_only_x_is_kept_of_what_grows_with_the_tokens(kind):
    site, _ = make(kind)
    x, kept = torch.randn(1000, 32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert [size for size in kept if size >= 1000] == [1000 * 32]


@pytest.mark.parametrize(("out", "width"), [(24, 32), (32, 24), (32, 600)])
def test_the_rank_is_the_product_of_the_ranks(out, width):
    site, _ = make(out=out, width=width, rank=2, factor=4)
    change = site.adapter.change()
    assert torch.linalg.matrix_rank(change) == 8
    A, B = site.adapter.factors()
    assert len(A) == 8
    torch.testing.assert_close(B @ A, change, atol=1e-4, rtol=1e-5)
    assert make("full")[0].adapter.factors() is None


@kinds
def test_the_start_is_that_of_lycoris_or_pefts(kind):
    site, _ = make(kind, moved=False)
    still = {name for name, p in site.adapter.named_parameters() if not p.any()}
    assert still == ({"w1"} if kind == "zero" else {"w2"} if "full" in kind else {"w2b"})
    scale = 3 / site.adapter.config.rank
    assert site.adapter.scaling == (1 if kind == "full" else scale)


@pytest.mark.parametrize(
    ("side", "factor", "found"),
    [
        (256, -1, (16, 16)),
        (128, -1, (8, 16)),
        (127, -1, (1, 127)),
        (128, 4, (4, 32)),
        (250, 4, (2, 125)),
        (32, 8, (4, 8)),
    ],
)
def test_sides_are_split_as_in_lycoris(side, factor, found):
    assert split(side, factor) == found


def test_where_peft_would_split_otherwise_there_is_no_form():
    assert make(factor=4)[0].adapter.peft.holds(make(factor=4)[0].adapter)
    assert not make(factor=8, rank=1)[0].adapter.peft.holds(make(factor=8, rank=1)[0].adapter)


def test_the_published_count_on_llama_3_2_3b():
    config = LoKr.Config(method="lokr", rank=32, factor=4)
    assert 28 * sum(LoKr.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 2_294_656


def test_a_factor_of_0_is_refused_with_what_works():
    with pytest.raises(ValueError, match="write -1"):
        LoKr.Config(method="lokr", factor=0)
