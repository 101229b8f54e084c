"""LoftQ's own statements."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb

from lrft.core.params import Site
from lrft.methods.quant.nf4_reference import NF4Reference
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError
from tests.contracts.test_inits import build, make, storing


def nf4(weight, bias=None, **settings):
    return NF4Reference(weight, bias, NF4Reference.Config(double_quant=False, **settings))


def started(weight, rank, alpha=None, quantize=nf4, **settings):
    """The adapter, what was taken off the weight, and the base stored without it."""
    config = ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha or float(rank))
    adapter = ADAPTERS.get("lora")(config, Site("a", weight.shape[1], weight.shape[0]))
    A, B = build("loftq", **settings).apply(adapter, weight, {}, quantize)
    return adapter, (A, B), quantize(weight - B @ A).weight()


def gaussian(out, width):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(0)) * 0.02


def authors(weight, rank, rounds):
    """The alternation written out on bitsandbytes' kernels: Q, A and B of the last round."""
    left = weight
    for _ in range(rounds):
        codes, state = bnb.quantize_4bit(left, blocksize=64, quant_type="nf4")
        Q = bnb.dequantize_4bit(codes, state)
        U, S, Vh = torch.linalg.svd(weight - Q, full_matrices=False)
        B, A = U[:, :rank] * S[:rank].sqrt(), S[:rank].sqrt()[:, None] * Vh[:rank]
        left = weight - B @ A
    return Q, A, B


@pytest.mark.parametrize("rounds", [1, 3])
def test_base_and_factors_are_those_of_the_algorithm_on_bitsandbytes(rounds):
    weight = gaussian(64, 128)
    adapter, _, stored = started(weight, 8, iterations=rounds)
    Q, A, B = authors(weight, 8, rounds)
    assert torch.equal(stored, Q)
    torch.testing.assert_close(adapter.B @ adapter.A, B @ A, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(adapter.A @ adapter.A.mT, A @ A.mT, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("rank", "errors"),
    [(16, [0.0844, 0.0796, 0.0774, 0.0760, 0.0752]), (64, [0.0646, 0.0586, 0.0569, 0.0563, 0.0561])],
)
def test_rounds_lower_the_error_of_normal_weights_as_measured_elsewhere(rank, errors):
    weight = gaussian(256, 512)
    for rounds in (1, 2, 5):
        adapter, _, stored = started(weight, rank, iterations=rounds)
        error = (weight - stored - adapter.delta_weight(weight)).norm() / weight.norm()
        assert error.item() == pytest.approx(errors[rounds - 1], abs=4e-4)


@pytest.mark.parametrize("alpha", [16.0, 4.0])
def test_what_is_left_is_what_the_leading_singular_values_leave_whatever_alpha(alpha):
    weight = gaussian(48, 96)
    adapter, _, stored = started(weight, 16, alpha, iterations=2)
    left = (weight - stored - adapter.delta_weight(weight)).norm()
    values = torch.linalg.svdvals(weight - stored)
    torch.testing.assert_close(left, values[16:].norm(), atol=1e-6, rtol=1e-4)
    assert left < (weight - stored).norm()


def test_the_first_round_stores_the_plain_rounded_weight():
    weight = gaussian(32, 64)
    adapter, (A, B), stored = started(weight, 4, iterations=1)
    assert not A.any() and not B.any()
    assert torch.equal(stored, nf4(weight).weight())
    assert adapter.A.any() and adapter.B.any()


def test_the_offset_is_that_of_the_round_before():
    weight = gaussian(32, 64)
    before, _, _ = started(weight, 4, iterations=2)
    _, (A, B), _ = started(weight, 4, iterations=3)
    torch.testing.assert_close(B @ A, before.delta_weight(weight).detach(), atol=1e-7, rtol=1e-4)


def test_with_all_ranks_next_to_nothing_is_lost():
    site, weight = make("loftq", rank=32)
    assert (site.merged_weight() - weight).norm() < 1e-5 * weight.norm()


def test_a_fast_decomposition_leaves_little_more():
    weight = gaussian(64, 128)
    errors = []
    for niter in (None, 8):
        torch.manual_seed(0)
        adapter, _, stored = started(weight, 8, iterations=2, niter=niter)
        errors.append((weight - stored - adapter.delta_weight(weight)).norm().item())
    assert errors[1] <= 1.03 * errors[0]


def test_a_base_that_rounds_nothing_is_refused_with_a_way_out():
    with pytest.raises(RecipeError, match="choose a quantization other than none"):
        make("loftq", "none")


def test_a_rank_beyond_the_matrix_is_refused_with_the_largest_that_works():
    with pytest.raises(ValueError, match="use at most 32"):
        started(gaussian(48, 32), 40, quantize=storing("nf4_reference"))
