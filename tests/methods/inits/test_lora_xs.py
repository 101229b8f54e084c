"""The published start of LoRA-XS."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.test_inits import make


def test_the_frame_holds_the_leading_singular_triples_with_the_values_on_the_input_side():
    site, weight = make("lora_xs")
    U, S, Vh = torch.linalg.svd(weight)
    torch.testing.assert_close(
        site.adapter.B @ site.adapter.A, (U[:, :4] * S[:4]) @ Vh[:4], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(site.adapter.B.mT @ site.adapter.B, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        site.adapter.A @ site.adapter.A.mT, torch.diag(S[:4] ** 2), atol=1e-4, rtol=1e-4
    )


def test_a_core_of_one_would_double_the_principal_part():
    site, weight = make("lora_xs", alpha=4.0)
    with torch.no_grad():
        site.adapter.R.copy_(torch.eye(4))
    values = torch.linalg.svdvals(weight)
    expected = torch.cat([2 * values[:4], values[4:]])
    torch.testing.assert_close(torch.linalg.svdvals(site.merged_weight()), expected, atol=1e-5, rtol=1e-4)


def test_the_core_is_noise_of_the_published_size():
    site, weight = make("lora_xs", rank=32)
    assert site.adapter.R.std().item() == pytest.approx(1e-5, rel=0.1)
    shift = site.adapter.delta_weight(weight).norm() / weight.norm()
    assert 0 < shift < 1e-3


def test_on_a_quantized_base_the_frame_is_that_of_the_true_weight():
    dense, _ = make("lora_xs", "none")
    rounded, _ = make("lora_xs", "nf4_reference")
    assert torch.equal(dense.adapter.A, rounded.adapter.A)


def test_without_noise_the_start_is_the_adapters_own():
    site, weight = make("lora_xs", sigma=0.0)
    own, _ = make("lora_xs", sigma=0.0)
    for parameter in own.adapter.parameters():
        parameter.data.zero_()
    own.adapter.start(weight)
    assert torch.equal(site.adapter.A, own.adapter.A) and torch.equal(site.adapter.B, own.adapter.B)
    assert torch.equal(site.merged_weight(), weight)
