"""PiSSA's own statements."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.test_inits import make


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_residual_is_what_the_leading_singular_values_leave(alpha):
    site, weight = make("pissa", alpha=alpha)
    left = torch.linalg.svdvals(site.base.weight())
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(left.square().sum(), values[4:].square().sum(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left[0], values[4], atol=1e-5, rtol=1e-4)


def test_both_factors_hold_the_root_of_the_singular_values():
    site, weight = make("pissa", alpha=10.0)
    expected = torch.diag(torch.linalg.svdvals(weight)[:4] / site.adapter.scaling)
    torch.testing.assert_close(site.adapter.A @ site.adapter.A.mT, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(site.adapter.B.mT @ site.adapter.B, expected, atol=1e-5, rtol=1e-4)


def test_the_fast_decomposition_leaves_no_less_and_little_more():
    exact, _ = make("pissa")
    fast, _ = make("pissa", niter=16)
    a, b = exact.base.weight().norm(), fast.base.weight().norm()
    assert a - 1e-5 <= b <= 1.02 * a


def test_a_rewritten_4_bit_residual_is_nearer_to_the_weight_than_plain_rounding():
    """The paper's reason to store the residual, on a weight whose spectrum decays."""
    from lrft.registry.axes import QUANTIZERS

    site, weight = make("pissa", "nf4_reference", residual="rewrite", rank=12, out=64, width=64)
    plain = QUANTIZERS.get("nf4_reference")(weight, None, QUANTIZERS.declared("nf4_reference").config())
    assert (site.merged_weight() - weight).norm() < (plain.weight() - weight).norm()
