"""LoRA-SB's own statements."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.test_inits import build, make, measured

ETA = 1e-3


def first_step():
    return -ETA * measured(build("lora_sb"))["grad"].sign()


def test_the_frame_is_orthonormal_and_the_core_is_diagonal_and_falling():
    site, _ = make("lora_sb", eta=ETA)
    A, B, R = site.adapter.A, site.adapter.B, site.adapter.R.detach()
    torch.testing.assert_close(A @ A.mT, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(B.mT @ B, torch.eye(4), atol=1e-5, rtol=0)
    values = R.diagonal()
    assert torch.equal(R, torch.diag(values))
    assert (values > 0).all() and (values.diff() <= 0).all()


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_start_is_the_best_rank_r_part_of_the_signs_whatever_alpha(alpha):
    site, weight = make("lora_sb", eta=ETA, alpha=alpha)
    U, S, Vh = torch.linalg.svd(first_step())
    best = (U[:, :4] * S[:4]) @ Vh[:4]
    torch.testing.assert_close(site.adapter.delta_weight(weight).detach(), best, atol=1e-7, rtol=1e-3)
    left = (first_step() - best).square().sum()
    torch.testing.assert_close(left, S[4:].square().sum(), atol=1e-9, rtol=1e-4)


def test_at_full_rank_the_start_is_adams_first_step():
    """Adam's first update with bias correction is lr times the sign of the gradient."""
    site, weight = make("lora_sb", eta=ETA, rank=32)
    G = measured(build("lora_sb"))["grad"]
    full = torch.nn.Parameter(weight.clone())
    full.grad = G.clone()
    torch.optim.Adam([full], lr=ETA, eps=1e-30).step()
    torch.testing.assert_close(site.merged_weight(), full.detach(), atol=1e-6, rtol=1e-5)


def test_only_signs_of_the_gradient_count():
    site, weight = make("lora_sb")
    before = site.adapter.R.detach().clone()
    G = measured(build("lora_sb"))["grad"]
    build("lora_sb").apply(site.adapter, weight, {"grad": 1e-6 * G * (1 + torch.rand_like(G))}, None)
    assert torch.equal(site.adapter.R, before)


def test_the_cores_gradient_is_the_full_ones_on_the_frame():
    site, _ = make("lora_sb", alpha=10.0)
    x, seed = torch.randn(9, 32), torch.randn(9, 48)
    (site(x) * seed).sum().backward()
    A, B, s = site.adapter.A, site.adapter.B, site.adapter.scaling
    torch.testing.assert_close(site.adapter.R.grad, s * B.mT @ (seed.mT @ x) @ A.mT, atol=1e-4, rtol=1e-4)


def test_a_step_on_the_core_moves_the_weight_by_the_projected_full_step():
    """Orthonormal factors need no correction: dW = B (B^T G A^T) A with s = 1."""
    site, _ = make("lora_sb", alpha=4.0)
    before = site.merged_weight()
    G = torch.randn(48, 32)
    A, B = site.adapter.A, site.adapter.B
    with torch.no_grad():
        site.adapter.R.sub_(0.1 * B.mT @ G @ A.mT)
    expected = -0.1 * (B @ B.mT) @ G @ (A.mT @ A)
    torch.testing.assert_close(site.merged_weight() - before, expected, atol=1e-5, rtol=1e-4)


def test_a_flat_spectrum_is_decomposed_exactly():
    """Where a randomised SVD without oversampling was found 47 % off."""
    torch.manual_seed(0)
    G = torch.linalg.qr(torch.randn(48, 48))[0][:, :32]
    site, weight = make("lora_sb", eta=ETA)
    build("lora_sb", eta=ETA).apply(site.adapter, weight, {"grad": G}, None)
    S = torch.linalg.svdvals(-ETA * G.sign())
    torch.testing.assert_close(site.adapter.R.diagonal() * site.adapter.scaling, S[:4], atol=1e-8, rtol=1e-4)


def test_a_gradient_of_zero_is_refused():
    site, weight = make("lora_sb")
    with pytest.raises(ValueError, match="batches"):
        build("lora_sb").apply(site.adapter, weight, {"grad": torch.zeros(48, 32)}, None)
