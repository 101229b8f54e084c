"""LoRA-MGPO against the same steps with a dense perturbed weight, and where there is no perturbation."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.mgpo import MGPO, product_norm
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

BETA1 = 0.8


def make(method="mgpo", storage="none", optimizer="adamw", **settings):
    return make_run(
        method, storage, optimizer, {"beta1": BETA1} if optimizer == "adamw" else {}, 0, **settings
    )


@pytest.mark.parametrize(("rho", "beta"), [(0.05, 0.8), (3.0, 0.0)])
def test_steps_are_those_of_a_dense_perturbed_weight(rho, beta):
    """The equations in float64 with V, E and norms formed whole."""
    run, site = make(rho=rho, beta=beta)
    W = site.base.weight().double()
    A, B = (p.detach().double().requires_grad_() for p in (site.adapter.A, site.adapter.B))
    reference, g, sizes = torch.optim.AdamW([A, B], lr=LR, betas=(BETA1, 0.999), weight_decay=0.0), None, []
    for t in range(6):
        E = torch.zeros(OUT, IN, dtype=torch.float64)
        if t:
            M_A, M_B = (reference.state[p]["exp_avg"] for p in (A, B))
            V = S * (M_B @ A + B @ M_A).detach()
            E = -rho * min(1 / (g + 1e-12), 10) * V / V.norm()
            sizes.append(min(1 / g, 10))
        x, y = (z.double() for z in batch(t))
        (x @ (W + E + S * B @ A).T - y).square().mean().backward()
        norm = S * (B.grad @ A + B @ A.grad).norm().item()
        g = norm if g is None else beta * g + (1 - beta) * norm
        reference.step()
        reference.zero_grad()
        step(run)
        if t:
            found = site.adapter.ahead_B @ site.adapter.ahead_A
            torch.testing.assert_close(found.double(), E, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.norm().item(), rho * sizes[-1], rtol=1e-4, atol=0)
        torch.testing.assert_close(site.adapter.A.double(), A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(site.adapter.B.double(), B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run.callbacks[0].norms["s"].item(), g, rtol=1e-4, atol=0)
    plain, other = make("lora")
    for _ in range(6):
        step(plain)
    assert not torch.allclose(other.adapter.B, site.adapter.B, atol=1e-4)


def test_without_rho_it_is_lora_and_the_first_step_always_is():
    run, site = make(rho=0.0)
    ahead, moved = make(rho=1.0)
    plain, other = make("lora")
    for t in range(4):
        for one in (run, plain, ahead):
            step(one)
        assert torch.equal(site.adapter.B, other.adapter.B) and torch.equal(site.adapter.A, other.adapter.A)
        assert torch.equal(moved.adapter.B, other.adapter.B) == (t == 0)


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_the_base_is_left_as_it_is_and_scores_are_those_of_lora(storage):
    run, site = make(storage=storage, rho=5.0)
    check_scores_are_those_of_lora(run, site)


def test_one_perturbation_serves_all_micro_batches_of_a_step():
    whole, site = make(rho=1.0)
    parts, other = make(rho=1.0)
    for _ in range(4):
        step(whole)
        step(parts, (slice(0, 3), slice(3, 8)))
    torch.testing.assert_close(site.adapter.B, other.adapter.B, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.callbacks[0].norms, parts.callbacks[0].norms)


def test_a_resumed_run_is_the_unbroken_one_to_the_bit():
    check_resumed_is_unbroken(partial(make, rho=1.0))


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "adamw"])
def test_it_finds_the_first_moment_of_every_optimizer_that_has_one(optimizer):
    run, site = make(optimizer=optimizer, rho=1.0)
    step(run)
    step(run)
    assert site.adapter.ahead_B.any()


def test_a_pass_keeps_no_more_of_a_token_than_lora():
    kept = {}
    for method in ("lora", "mgpo"):
        run, site = make(method)
        kept[method] = kept_bytes(run, site)
    assert kept["mgpo"] == kept["lora"]


def test_a_norm_without_the_product_is_that_of_the_product():
    A, B = torch.randn(5, 30), torch.randn(20, 5)
    torch.testing.assert_close(product_norm(A, B), (B @ A).norm())


@pytest.mark.parametrize(
    "changes",
    [["optimizer=mezo", "train.clip=null"], ["optimizer={method: sgd, momentum: 0}"], ["optimizer=muon"]],
)
def test_an_optimizer_that_has_no_first_moment_of_every_entry_is_refused(changes):
    with pytest.raises(RecipeError, match="mgpo"):
        load_recipe("smoke/mgpo", [*changes, "model.name=x/y"])


def test_it_is_exported_as_the_lora_that_it_is():
    assert (
        issubclass(MGPO, LoRA)
        and MGPO.peft_form().keys(MGPO.Config(method="mgpo"), False)["peft_type"] == "LORA"
    )
