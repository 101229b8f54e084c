"""LoRA-One's own statements."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.test_inits import build, make, measured


def gradient():
    return measured(build("lora_one"))["grad"]


@pytest.mark.parametrize(("alpha", "gamma"), [(8.0, 128.0), (3.0, 16.0)])
def test_the_start_is_a_step_of_spectral_norm_s_over_gamma_down_the_gradient(alpha, gamma):
    site, weight = make("lora_one", alpha=alpha, gamma=gamma)
    step = site.adapter.delta_weight(weight).detach()
    norm = torch.linalg.matrix_norm(step, 2)
    torch.testing.assert_close(norm, torch.tensor(site.adapter.scaling / gamma), atol=1e-7, rtol=1e-4)
    U, S, Vh = torch.linalg.svd(gradient())
    expected = -site.adapter.scaling / gamma * (U[:, :4] * S[:4]) @ Vh[:4] / S[0]
    torch.testing.assert_close(step, expected, atol=1e-6, rtol=1e-3)


def test_each_factor_holds_the_roots_of_the_singular_values_over_the_first():
    site, _ = make("lora_one", gamma=16.0)
    S = torch.linalg.svdvals(gradient())[:4]
    expected = torch.diag(S / S[0]) / 16
    torch.testing.assert_close(site.adapter.A @ site.adapter.A.mT, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(site.adapter.B.mT @ site.adapter.B, expected, atol=1e-6, rtol=1e-4)


def test_the_first_step_is_full_fine_tunings_at_rank_min():
    """With every rank the start is the gradient itself, scaled."""
    site, weight = make("lora_one", rank=32)
    G = gradient()
    step = site.adapter.delta_weight(weight)
    scale = site.adapter.scaling / 128 / torch.linalg.matrix_norm(G, 2)
    torch.testing.assert_close(step, -scale * G, atol=1e-6, rtol=1e-3)


def test_the_randomised_decomposition_of_the_authors_is_the_exact_one_for_small_matrices():
    """512 columns are more than there are."""
    exact, weight = make("lora_one")
    fast, _ = make("lora_one", niter=16)
    torch.testing.assert_close(
        fast.adapter.delta_weight(weight), exact.adapter.delta_weight(weight), atol=1e-6, rtol=1e-3
    )


def test_the_export_is_a_plain_lora_of_the_same_rank_on_the_untouched_base():
    site, weight = make("lora_one")
    tensors = site.adapter.peft.tensors(site.adapter, site.start)
    keys = site.adapter.peft.keys(site.adapter.config, False)
    change = keys["lora_alpha"] / keys["r"] * tensors["B"] @ tensors["A"]
    assert keys["r"] == 4
    torch.testing.assert_close(weight + change, site.merged_weight(), atol=1e-6, rtol=1e-5)


def test_a_gradient_of_zero_is_refused():
    site, weight = make("lora_one")
    with pytest.raises(ValueError, match="batches"):
        build("lora_one").apply(site.adapter, weight, {"grad": torch.zeros(48, 32)}, None)
