"""Low-rank training's own statements."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.frozen import Absent
from lrft.core.params import Site
from lrft.methods.adapters.factorized import Factorized


def make(rank=4, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    adapter = Factorized(Factorized.Config(method="factorized", rank=rank, **settings), Site("a", width, out))
    adapter.start(weight)
    return Adapted(Absent(weight, bias), adapter), weight


@pytest.mark.parametrize("settings", [{}, {"alpha": 1.0}])
def test_the_spectral_start_is_the_best_approximation_of_the_weight_that_stood_there(settings):
    site, weight = make(**settings)
    U, S, Vh = torch.linalg.svd(weight)
    best = (U[:, :4] * S[:4]) @ Vh[:4]
    torch.testing.assert_close(site.adapter.own_weight(), best, atol=1e-5, rtol=1e-4)
    A, B = site.adapter.A, site.adapter.B
    torch.testing.assert_close(B.mT @ B, A @ A.mT, atol=1e-5, rtol=1e-4)  # balanced


def test_the_start_of_the_benchmark_code_is_random_in_both_factors():
    site, _ = make(rank=16, out=64, width=64, start="kaiming", alpha=4.0)
    assert site.adapter.scaling == 0.25
    assert 0.9 < site.adapter.A.abs().max() * 8 <= 1 and 0.9 < site.adapter.B.abs().max() * 4 <= 1


def test_at_full_rank_it_starts_as_the_weight_itself():
    site, weight = make(rank=16)
    torch.testing.assert_close(site.merged_weight(), weight, atol=1e-5, rtol=1e-4)


def test_the_weight_that_stood_there_takes_no_memory_and_its_bias_stays():
    site, _ = make()
    assert site.base.stored_bytes == 4
    x = torch.randn(5, 16)
    torch.testing.assert_close(
        site(x), F.linear(x, site.merged_weight(), site.base.bias), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match="nothing can be folded"):
        site.base.write(torch.zeros(24, 16))


def test_the_count_is_that_of_low_rank_60m_in_galores_table():
    config = Factorized.Config(method="factorized", rank=128)
    layer = 4 * [(512, 512)] + [(1376, 512)] * 2 + [(512, 1376)]
    factors = 8 * sum(Factorized.count(config, Site("a", width, out)) for out, width in layer)
    assert factors + 2 * 32000 * 512 + 17 * 512 == 42_770_944


def test_a_rank_beyond_the_weight_is_refused_with_the_largest_that_works():
    with pytest.raises(ValueError, match="use at most 16"):
        make(rank=17)
