"""LoRA-GA's own statements."""

from __future__ import annotations

import pytest
import torch

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.methods.signals.grad import Grad
from lrft.model.calibrate import calibrate
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.sections import ModelSection
from tests.contracts.test_inits import make, weight_and_signals


def test_stable_scales_both_factors_alike():
    site, weight = make("lora_ga", gamma=16.0)
    expected = weight.shape[0] ** 0.5 / 16.0 * torch.eye(4)
    torch.testing.assert_close(site.adapter.A @ site.adapter.A.mT, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(site.adapter.B.mT @ site.adapter.B, expected, atol=1e-5, rtol=1e-4)
    values = torch.linalg.svdvals(site.start.delta_weight(weight))[:4]
    torch.testing.assert_close(
        values, torch.full((4,), site.adapter.scaling * 48**0.5 / 16), atol=1e-5, rtol=1e-4
    )


def test_B_avoids_the_directions_that_A_has_taken():
    _, signals = weight_and_signals()
    U, _, Vh = torch.linalg.svd(signals["grad"])
    for direction, taken in (("ArB2r", slice(0, 4)), ("A2rBr", slice(4, 8))):
        site, _ = make("lora_ga", direction=direction, niter=20)
        other = slice(4, 8) if taken.start == 0 else slice(0, 4)
        assert (site.adapter.A @ Vh[other].mT).abs().max() < 2e-2 * site.adapter.A.norm()
        assert (site.adapter.B.mT @ U[:, taken]).abs().max() < 2e-2 * site.adapter.B.norm()


@pytest.mark.parametrize("direction", ["ArBr", "random"])
def test_the_other_directions_are_disjoint_too(direction):
    site, _ = make("lora_ga", direction=direction, niter=20)
    _, signals = weight_and_signals()
    U, _, Vh = torch.linalg.svd(signals["grad"])
    of_a = (site.adapter.A @ Vh[:8].mT).abs().sum(0) > 0.1
    of_b = (site.adapter.B.mT @ U[:, :8]).abs().sum(0) > 0.1
    assert not (of_a & of_b).any()


def test_one_gradient_step_moves_along_the_best_rank_2r_part_of_the_gradient():
    """To first order, a step on A and B changes s B A by a multiple of the leading 2r directions of -G."""
    site, _ = make("lora_ga", niter=20)
    _, signals = weight_and_signals()
    G, s = signals["grad"], site.adapter.scaling
    A, B = site.adapter.A.detach(), site.adapter.B.detach()
    step = -(s * B @ (s * B.mT @ G) + s * (s * G @ A.mT) @ A)
    U, S, Vh = torch.linalg.svd(G)
    best = -(U[:, :8] * S[:8]) @ Vh[:8]
    cosine = (step * best).sum() / (step.norm() * best.norm())
    assert cosine > 0.999


def test_weightS_has_the_size_of_the_weights_leading_singular_values():
    site, weight = make("lora_ga", scale="weightS", rank=8, out=256, width=192)
    expected = (torch.linalg.svdvals(weight)[:8] / site.adapter.scaling).sqrt().mean()
    torch.testing.assert_close(site.adapter.A.norm(dim=1), expected.expand(8), atol=0, rtol=2e-3)


@pytest.mark.parametrize(("gamma", "clipped"), [(1.0, True), (4096.0, False)])
def test_a_start_larger_than_the_weight_is_shortened_to_its_largest_entry(gamma, clipped):
    plain, weight = make("lora_ga", gamma=gamma)
    site, _ = make("lora_ga", gamma=gamma, norm_clip=True)
    before, after = (one.start.delta_weight(weight) for one in (plain, site))
    ratio = weight.abs().max() / before.abs().max()
    assert bool(ratio < 1) == clipped
    torch.testing.assert_close(after, min(ratio, torch.ones(())) * before)
    A, B = site.adapter.A.norm() / plain.adapter.A.norm(), site.adapter.B.norm() / plain.adapter.B.norm()
    torch.testing.assert_close(A, B)  # each by the root of the ratio


class SumOfSquares(Objective):
    """A loss that reaches every site, for comparing gradients."""

    def __call__(self, model, batch, run=None):
        return model.hidden(batch).square().sum()


def test_the_measured_gradient_is_autograds(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32"))
    sites = linear_sites(model)
    ids = torch.randint(3, 400, (2, 9))
    none = ids.new_zeros(1)
    batch = Batch(ids, torch.arange(9).expand(2, 9), ((0, 0, 9), (1, 0, 9)), none, none)
    signals = calibrate(model, sites, [batch, batch], SumOfSquares(None), lambda site, name: Grad(), ["grad"])
    model.hf.requires_grad_(True)
    SumOfSquares(None)(model, batch).backward()
    for name in sites:
        expected = model.hf.get_submodule(name).weight.grad
        torch.testing.assert_close(signals[name]["grad"], expected, atol=1e-3, rtol=1e-3)
