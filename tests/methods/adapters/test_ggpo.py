"""LoRA-GGPO against the same steps with a dense noisy weight, and where there is no noise."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lrft.ops.noise_matmul import noise, noise_linear
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.methods.adapters.one_site import (
    IN,
    LR,
    OUT,
    S,
    batch,
    check_resumed_is_unbroken,
    check_scores_are_those_of_lora,
    kept_bytes,
    make_run,
    step,
)


def make(method="ggpo", storage="none", **settings):
    return make_run(method, storage, "adamw", {}, 3, **settings)


@pytest.mark.parametrize(("sigma", "beta"), [(0.5, 100.0), (0.5, 0.0)])
def test_steps_are_those_of_a_dense_noisy_weight(sigma, beta):
    """The equations in float64 with W', g and the deviations formed whole; only the normal numbers are taken over."""
    run, site = make(sigma=sigma, beta=beta)
    W = site.base.weight().double()
    A, B = (p.detach().double().requires_grad_() for p in (site.adapter.A, site.adapter.B))
    reference, g = torch.optim.AdamW([A, B], lr=LR, weight_decay=0.0), None
    for t in range(6):
        E = torch.zeros(OUT, IN, dtype=torch.float64)
        if g is not None:
            whole = (W + S * B @ A).detach()
            variance = sigma**2 / IN * (whole.norm(dim=1) ** 2 + beta * g.norm(dim=1) ** 2)
            seed = ((3 * 1_000_003 + t) * 3_000_017) % 2**63
            drawn = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed))
            E = drawn.double() * variance.sqrt()[:, None]
        x, y = (z.double() for z in batch(t))
        (x @ (W + E + S * B @ A).T - y).square().mean().backward()
        g = S * (B.grad @ A + B @ A.grad).detach()
        reference.step()
        reference.zero_grad()
        step(run)
        torch.testing.assert_close(site.adapter.A.double(), A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(site.adapter.B.double(), B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            run.callbacks[0].rows["s"].double(), g.norm(dim=1) ** 2, rtol=1e-4, atol=1e-9
        )
    plain, other = make("lora")
    for _ in range(6):
        step(plain)
    assert not torch.allclose(other.adapter.B, site.adapter.B, atol=1e-3)


def test_without_sigma_it_is_lora_and_the_first_step_always_is():
    run, site = make(sigma=0.0)
    noisy, moved = make(sigma=1.0)
    plain, other = make("lora")
    for t in range(4):
        for one in (run, plain, noisy):
            step(one)
        assert torch.equal(site.adapter.B, other.adapter.B) and torch.equal(site.adapter.A, other.adapter.A)
        assert torch.equal(moved.adapter.B, other.adapter.B) == (t == 0)


def test_noise_has_the_variance_of_the_equation():
    """Over forty thousand draws of each row, to within five standard errors of a variance."""
    deviations = torch.tensor([0.5, 2.0, 0.0])
    found = noise(deviations, 40_000, 1, torch.float32)
    torch.testing.assert_close(found.var(dim=1), deviations**2, rtol=5 * (2 / 40_000) ** 0.5, atol=0)
    assert found.mean(dim=1).abs().max() < 5 * 2.0 / 200
    assert not torch.equal(found, noise(deviations, 40_000, 2, torch.float32))


def test_the_gradient_to_the_input_is_that_of_the_noisy_map_and_no_draw_of_others_is_changed():
    x, deviations = torch.randn(5, 7, requires_grad=True), torch.rand(4)
    before = torch.get_rng_state()
    y = noise_linear(x, deviations, 11)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(torch.get_rng_state(), before)
    E = noise(deviations, 7, 11, torch.float32)
    torch.testing.assert_close(y, x @ E.T)
    torch.testing.assert_close(dx, torch.ones_like(y) @ E)


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_the_base_is_left_as_it_is_and_scores_are_those_of_lora(storage):
    run, site = make(storage=storage, sigma=1.0)
    check_scores_are_those_of_lora(run, site)


def test_one_draw_serves_all_micro_batches_of_a_step():
    whole, site = make(sigma=1.0)
    parts, other = make(sigma=1.0)
    for _ in range(4):
        step(whole)
        step(parts, (slice(0, 3), slice(3, 8)))
    torch.testing.assert_close(site.adapter.B, other.adapter.B, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_unbroken_one_to_the_bit():
    check_resumed_is_unbroken(partial(make, sigma=1.0))


def test_a_pass_keeps_no_more_of_a_token_than_lora():
    kept = {}
    for method in ("lora", "ggpo"):
        run, site = make(method)
        step(run)
        run.fire("before_step")
        kept[method] = kept_bytes(run, site)
    assert kept["ggpo"] == kept["lora"]


@pytest.mark.parametrize(
    "changes",
    [
        ["optimizer=mezo", "train.clip=null"],
        ["optimizer={method: galore, per_layer: true}", "train.clip=null"],
    ],
)
def test_what_leaves_no_gradients_to_measure_is_refused(changes):
    with pytest.raises(RecipeError, match="ggpo"):
        load_recipe("smoke/ggpo", [*changes, "model.name=x/y"])
