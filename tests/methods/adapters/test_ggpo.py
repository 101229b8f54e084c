"""LoRA-GGPO against the same steps with a dense noisy weight, and where there is no noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.ops.noise_matmul import noise, noise_linear
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule
from lrft.training.flatten import flatten, unflatten

OUT, IN, R, S = 24, 16, 4, 2.0
LR = 0.01


def make(method="ggpo", storage="none", **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get(storage)(torch.randn(OUT, IN) / 4)
    config = ADAPTERS.declared(method).config(method=method, rank=R, alpha=S * R, **settings)
    part = ADAPTERS.get(method)(config, Site("s", IN, OUT))
    infos = [ParamInfo(f"s.{n}", p, part.roles[n], "s") for n, p in part.named_parameters()]
    made = OPTIMIZERS.get("adamw").build(infos, OPTIMIZERS.declared("adamw").config(lr=LR))
    model = nn.Sequential()
    model.add_module("s", Adapted(base, part))
    run = Run(model, infos, made, schedule.build(made, SCHEDULES.settings("constant"), 99), 99, seed=3)
    timed = type(part).timed(config)
    run.callbacks = [] if timed is None else [timed]
    return run, model.s


def batch(t):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, IN, generator=generator), torch.randn(8, OUT, generator=generator)


def step(run, rows=(slice(None),)):
    run.fire("before_step")
    x, y = batch(run.step)
    for part in rows:
        ((run.model(x[part]) - y[part]).square().sum() / y.numel()).backward()
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


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
    before = site.base.weight().clone()
    for _ in range(3):
        step(run)
    assert torch.equal(site.base.weight(), before)
    x, _ = batch(0)
    training = run.model(x)
    scored = run.model.eval()(x)
    torch.testing.assert_close(scored, x @ site.merged_weight().T, rtol=1e-4, atol=1e-4)
    assert (training - scored).abs().max() > 0.1


def test_one_draw_serves_all_micro_batches_of_a_step():
    whole, site = make(sigma=1.0)
    parts, other = make(sigma=1.0)
    for _ in range(4):
        step(whole)
        step(parts, (slice(0, 3), slice(3, 8)))
    torch.testing.assert_close(site.adapter.B, other.adapter.B, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_unbroken_one_to_the_bit():
    whole, site = make(sigma=1.0)
    for _ in range(6):
        step(whole)
    first, part = make(sigma=1.0)
    for _ in range(3):
        step(first)
    second, other = make(sigma=1.0)
    other.adapter.load_state_dict(part.adapter.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.callbacks[0].load_state_dict(unflatten(*flatten(first.callbacks[0].state_dict())))
    second.step = 3
    assert set(part.adapter.state_dict()) == {"A", "B"}
    for _ in range(3):
        step(second)
    assert torch.equal(site.adapter.A, other.adapter.A) and torch.equal(site.adapter.B, other.adapter.B)


def test_a_pass_keeps_no_more_of_a_token_than_lora():
    kept = {}
    for method in ("lora", "ggpo"):
        run, site = make(method)
        step(run)
        run.fire("before_step")
        held = {t.data_ptr() for t in (*site.parameters(), *site.buffers())}
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            run.model(torch.randn(100, IN))
        kept[method] = sum(t.nbytes for t in saved if t.data_ptr() not in held)
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
