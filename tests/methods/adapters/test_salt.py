"""SALT's own statements, and the authors' formula written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.salt import SALT
from lrft.methods.quant.none import Dense

EACH = pytest.mark.parametrize("relu", ["all", "diag"])


def make(out=24, width=16, moved=True, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = SALT.Config(method="salt", **{"rank": 3, "share": 0.25, **settings})
    adapter = SALT(config, Site("a", width, out))
    adapter.start(weight)
    with torch.no_grad():
        for parameter in adapter.parameters() if moved else ():
            parameter.add_(torch.randn_like(parameter))
    return Adapted(Dense(weight), adapter), weight


def between(adapter, weight):
    """The matrix between U and V before the cut, as the authors fill it."""
    S, k = torch.linalg.svdvals(weight), len(adapter.a)
    C = torch.diag(S)
    C[:k, :k] = torch.diag(adapter.a * S[:k] + adapter.b)
    C[k:, k:] = C[k:, k:] + adapter.X @ adapter.Y
    return C


def written_out(adapter, weight, relu):
    C = between(adapter, weight)
    cut = C.relu() if relu == "all" else torch.where(torch.eye(len(C)).bool(), C.relu(), C)
    return adapter.get_buffer("U") @ cut @ adapter.get_buffer("Vh")


@EACH
@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24)])
def test_output_and_gradients_are_those_of_the_formula(relu, out, width):
    site, weight = make(out, width, relu=relu)
    adapter, x, seed = site.adapter, torch.randn(5, width), torch.randn(5, out)
    y = F.linear(x, written_out(adapter, weight, relu))
    expected = torch.autograd.grad((y * seed).sum(), list(adapter.parameters()))
    got = site(x)
    torch.testing.assert_close(got, y, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(site.merged_weight(), written_out(adapter, weight, relu), atol=1e-4, rtol=1e-4)
    (got * seed).sum().backward()
    for mine, theirs in zip(adapter.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, theirs, atol=1e-3, rtol=1e-4)


def test_off_the_diagonal_the_authors_cut_keeps_what_is_positive():
    (site, _), (other, _) = make(relu="all"), make(relu="diag")
    k = len(site.adapter.a)
    product = (site.adapter.X @ site.adapter.Y).detach()
    off = ~torch.eye(len(product)).bool()
    for made, expected in ((site, product.relu()), (other, product)):
        U, Vh = made.adapter.get_buffer("U"), made.adapter.get_buffer("Vh")
        inside = (U.mT @ made.adapter.change() @ Vh.mT)[k:, k:]
        torch.testing.assert_close(inside[off], expected[off], atol=1e-4, rtol=1e-4)
    assert (product[off] < 0).any()


def test_the_first_step_moves_scales_shifts_and_y_through_the_diagonal():
    site, _ = make(moved=False)
    site(torch.randn(5, 16)).square().sum().backward()
    moving = {name: bool(p.grad.any()) for name, p in site.adapter.named_parameters()}
    assert moving == {"a": True, "b": True, "X": False, "Y": True}


def test_the_penalty_is_the_two_norms_and_none_without_a_weight():
    site, weight = make(penalty=0.5)
    adapter, top = site.adapter, torch.linalg.svdvals(weight)[: len(site.adapter.a)]
    expected = torch.norm(adapter.a * top + adapter.b - top) + torch.norm(adapter.X @ adapter.Y)
    torch.testing.assert_close(adapter.penalty(), 0.5 * expected)
    still = make(penalty=0.5, moved=False)[0].adapter
    still.penalty().backward()
    assert still.penalty() == 0 and all(p.grad.isfinite().all() for p in still.parameters())
    assert make()[0].adapter.penalty() is None


def test_the_bound_of_the_start_has_no_effect_of_the_a_that_the_code_names():
    adapter = make(256, 256, moved=False, rank=6)[0].adapter
    assert 0.98 < adapter.X.abs().max() <= 1  # sqrt(6 / rank), of 1,152 draws
    assert adapter.X.shape == (192, 6) and not adapter.Y.any()


def test_of_the_input_only_its_place_in_the_frame_is_kept():
    site, _ = make(width=40, out=16)
    x, kept = torch.randn(1000, 40), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 16


@pytest.mark.parametrize(("rank", "message"), [(4, "use at most 3"), (1, None)])
def test_a_rank_beyond_the_smaller_singular_values_is_refused(rank, message):
    config = SALT.Config(method="salt", rank=rank, share=0.25)
    if message is None:
        assert SALT.count(config, Site("a", 4, 9)) == 2 + 2 * 3
        return
    with pytest.raises(ValueError, match=message):
        SALT(config, Site("a", 4, 9))
