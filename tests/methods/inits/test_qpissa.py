"""QPiSSA's own statements."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb

from lrft.core.params import Site
from lrft.methods.quant.nf4_reference import NF4Reference
from lrft.registry.axes import ADAPTERS
from tests.contracts.test_inits import build, make


def nf4(weight, bias=None, **settings):
    return NF4Reference(weight, bias, NF4Reference.Config(double_quant=False, **settings))


def started(weight, rank, alpha=None, quantize=nf4, **settings):
    """The adapter and the base that holds the rounded rest."""
    config = ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha or float(rank))
    adapter = ADAPTERS.get("lora")(config, Site("a", weight.shape[1], weight.shape[0]))
    assert build("qpissa", **settings).apply(adapter, weight, {}, quantize) is None
    delta = adapter.delta_weight(weight).detach()
    return adapter, quantize(weight - delta).weight()


def decaying(out, width):
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(out, width, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return (U * 0.9 ** torch.arange(width)) @ V


def alike(stored, other):
    """Up to rounding, which may move a weight that lies on the edge between two levels."""
    return ((stored - other).abs() > 1e-4).float().mean() < 5e-3


def authors(weight, rank, rounds):
    """The authors' order, SVD then rounding, on bitsandbytes' kernels: Q, A and B of the last round."""
    left = weight
    for _ in range(rounds):
        U, S, Vh = torch.linalg.svd(left, full_matrices=False)
        B, A = U[:, :rank] * S[:rank].sqrt(), S[:rank].sqrt()[:, None] * Vh[:rank]
        Q = bnb.dequantize_4bit(*bnb.quantize_4bit(weight - B @ A, blocksize=64, quant_type="nf4"))
        left = weight - Q
    return Q, A, B


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_base_and_factors_are_those_of_the_algorithm_on_bitsandbytes(rounds):
    weight = decaying(96, 64)
    adapter, stored = started(weight, 8, iterations=rounds)
    Q, A, B = authors(weight, 8, rounds)
    assert alike(stored, Q)
    torch.testing.assert_close(adapter.B @ adapter.A, B @ A, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(adapter.A @ adapter.A.mT, A @ A.mT, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_one_round_is_pissa_with_a_rounded_residual(alpha):
    one, _ = make("qpissa", "nf4_reference", alpha=alpha, iterations=1)
    pissa, _ = make("pissa", "nf4_reference", alpha=alpha, residual="rewrite")
    assert alike(one.base.weight(), pissa.base.weight())
    torch.testing.assert_close(one.adapter.A, pissa.adapter.A, atol=1e-6, rtol=1e-5)


def test_on_a_dense_base_more_rounds_are_still_pissa():
    many, _ = make("qpissa", "none", iterations=5)
    pissa, _ = make("pissa", "none")
    torch.testing.assert_close(
        many.adapter.delta_weight(torch.zeros(48, 32)), pissa.adapter.delta_weight(torch.zeros(48, 32))
    )


def test_more_rounds_leave_less_of_a_weight_whose_spectrum_decays():
    weight, errors = decaying(96, 64), []
    for rounds in (1, 2, 5):
        adapter, stored = started(weight, 8, iterations=rounds)
        errors.append((weight - stored - adapter.delta_weight(weight)).norm().item())
    plain = (weight - nf4(weight).weight()).norm().item()
    assert plain > errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("alpha", [8.0, 3.0])
def test_the_scale_divides_out(alpha):
    weight = decaying(96, 64)
    one, base = started(weight, 8)
    other, other_base = started(weight, 8, alpha)
    torch.testing.assert_close(other.delta_weight(weight), one.delta_weight(weight), atol=2e-5, rtol=1e-3)
    assert alike(base, other_base)


def test_the_base_is_the_only_place_for_the_residual():
    with pytest.raises(ValueError, match="rewrite"):
        build("qpissa", residual="anchor")
