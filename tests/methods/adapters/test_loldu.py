"""LoLDU's own statements, and torch's decomposition on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.loldu import LoLDU, ldu
from lrft.methods.quant.none import Dense
from lrft.registry.errors import RecipeError


def make(rank=6, out=24, width=16, alpha=3.0):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = LoLDU(LoLDU.Config(method="loldu", rank=rank, alpha=alpha), Site("a", width, out))
    adapter.start(weight)
    with torch.no_grad():
        adapter.z.add_(torch.randn(rank))
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24), (16, 16)])
def test_factors_are_torchs_with_a_unit_diagonal_and_give_the_weight_back(out, width):
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(3))
    P, lower, upper = torch.linalg.lu(weight.double())
    L, D, U = ldu(weight, 16)
    torch.testing.assert_close(L, P @ lower)
    torch.testing.assert_close(D, upper.diagonal())
    torch.testing.assert_close(U.diagonal(), torch.ones_like(D))
    torch.testing.assert_close((L * D @ U).float(), weight)
    few = ldu(weight, 5)
    assert all(torch.equal(a, b) for a, b in zip(few, (L[:, :5], D[:5], U[:5]), strict=True))


def test_it_is_the_authors_residual_and_product():
    """W - c P L diag(D) U + c P L diag(z) U, formed as their code forms it."""
    site, weight = make()
    P, lower, upper = torch.linalg.lu(weight)
    D, U = upper.diagonal()[:6], (upper / upper.diagonal()[:, None])[:6]
    product = P @ lower[:, :6] * (3.0 / 6)
    residual = weight - product @ torch.diag(D) @ U
    expected = residual + product @ torch.diag(site.adapter.z) @ U
    torch.testing.assert_close(site.merged_weight(), expected, atol=1e-4, rtol=1e-4)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), F.linear(x, expected), atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(site.adapter.change()) == 6


def test_at_the_pivots_it_is_the_base_to_the_last_bit():
    site, weight = make()
    site.adapter.reset()
    x = torch.randn(5, 16)
    assert torch.equal(site(x), site.base(x)) and torch.equal(site.merged_weight(), weight)


def test_the_count_is_the_published_one_of_roberta():
    config = LoLDU.Config(method="loldu", rank=768)
    assert 2 * 12 * LoLDU.count(config, Site("a", 768, 768)) == 18_432


def test_a_weight_without_pivots_is_refused_by_name():
    adapter = LoLDU(LoLDU.Config(method="loldu", rank=3), Site("layers.0.q", 4, 6))
    weight = torch.randn(6, 4)
    weight[:, 2] = 0
    with pytest.raises(RecipeError, match=r"layers\.0\.q: pivot 3 of the weight is 0"):
        adapter.start(weight)
    with pytest.raises(ValueError, match="use at most 4"):
        LoLDU(LoLDU.Config(method="loldu", rank=5), Site("a", 4, 6))


def test_only_the_rank_wide_product_is_kept_for_the_backward_pass():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 6
