"""MeZO: a directional derivative from two losses, directions that come again, and parameters that come back."""

import copy
import math

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import seeded
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import RecipeError


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(dtype=torch.float32):
    kinds = {"a.A": ((3, 8), "lora_A"), "a.B": ((8, 3), "lora_B"), "norm.weight": ((8,), "vector")}
    return [
        ParamInfo(name, nn.Parameter(tensor(*shape, seed=i, dtype=dtype)), role)
        for i, (name, (shape, role)) in enumerate(kinds.items())
    ]


def build(infos, draw=None, **settings):
    config = OPTIMIZERS.declared("mezo").config(method="mezo", **settings)
    return OPTIMIZERS.get("mezo").build(infos, config, draw)


def values(infos):
    return [info.param.detach().clone() for info in infos]


def quadratic(infos):
    """0.5 p' H p + b' p with a diagonal H that differs between parameters."""

    def loss():
        parts = [
            0.5 * (i + 1) * info.param.double().square().sum()
            + (tensor(*info.param.shape, seed=50 + i) * info.param.double()).sum()
            for i, info in enumerate(infos)
        ]
        return torch.stack(parts).sum()

    return loss


def gradient(infos, loss):
    return torch.autograd.grad(loss(), [info.param for info in infos])


def directions(infos, seed=0, step=0, sample=0):
    draw = seeded(seed)
    return [draw(info.param, info.name, step, sample) for info in infos]


@pytest.mark.parametrize("eps", [1e-2, 1e-3])
def test_on_a_quadratic_the_slope_is_the_directional_derivative(eps):
    """Two points on either side cancel the curvature, so this holds for any eps."""
    infos = parameters(torch.float64)
    loss, before = quadratic(infos), values(infos)
    z = directions(infos)
    slope = sum((g * d).sum() for g, d in zip(gradient(infos, loss), z, strict=True))
    build(infos, lr=0.01, eps=eps).step(loss)
    for info, old, d in zip(infos, before, z, strict=True):
        torch.testing.assert_close(info.param.data, old - 0.01 * slope * d, rtol=1e-5, atol=1e-6)


def test_the_reported_loss_is_that_of_the_first_point():
    infos = parameters()
    loss, z = quadratic(infos), directions(infos)
    shifted = copy.deepcopy(infos)
    for info, d in zip(shifted, z, strict=True):
        info.param.data.add_(d, alpha=0.01)
    assert build(infos, eps=0.01).step(loss).item() == pytest.approx(quadratic(shifted)().item(), rel=1e-6)


def test_swapping_the_two_points_turns_the_step_round():
    moved = []
    for sign in (1, -1):
        infos = parameters()
        before, draw = values(infos), seeded(0)
        optimizer = build(infos, lambda *a, s=sign, d=draw: s * d(*a), lr=0.01)
        optimizer.step(lambda i=infos, s=sign: s * quadratic(i)())
        moved.append([info.param.detach() - old for info, old in zip(infos, before, strict=True)])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, -other)


def test_the_mean_over_directions_is_the_gradient():
    """E[(g' z) z] = g: within four and a half standard errors of 1500 draws."""
    infos = parameters()
    loss, before = quadratic(infos), values(infos)
    wanted = gradient(infos, loss)
    build(infos, lr=1.0, samples=1500).step(loss)
    found = [old - info.param.detach() for info, old in zip(infos, before, strict=True)]
    total = math.sqrt(sum(g.square().sum().item() for g in wanted))
    for f, g in zip(found, wanted, strict=True):
        assert (f - g).abs().max() < 4.5 * total * math.sqrt(2 / 1500)
        assert torch.nn.functional.cosine_similarity(f.flatten(), g.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_come_back_to_the_bit(dtype):
    """A loss that does not depend on them has slope 0: three hundred steps leave them where they were."""
    infos = parameters(dtype)
    before = values(infos)
    optimizer = build(infos, lr=0.1)
    for _ in range(300):
        optimizer.step(lambda: torch.tensor(1.0))
    assert all(torch.equal(info.param, old) for info, old in zip(infos, before, strict=True))


def test_in_place_they_come_back_within_two_units_in_the_last_place():
    infos = parameters()
    before, held = values(infos), []
    optimizer = build(infos, restore="in_place")
    optimizer.step(lambda: torch.tensor(1.0))
    for info, old in zip(infos, before, strict=True):
        larger = old.abs() + 0.01 * 5
        assert ((info.param - old).abs() <= 2 * torch.finfo(torch.float32).eps * larger).all()
        held.append(torch.equal(info.param, old))
    assert not all(held)


def test_both_ways_of_restoring_take_the_same_step():
    moved = []
    for restore in ("exact", "in_place"):
        infos = parameters()
        for _ in range(3):
            build(infos, lr=1e-3, restore=restore).step(quadratic(infos))
        moved.append(values(infos))
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("restore", ["exact", "in_place"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_direction_is_the_same_whenever_it_is_drawn(restore, samples):
    infos, seen, usual = parameters(), {}, seeded(0)

    def draw(param, name, step, sample):
        seen.setdefault((name, step, sample), []).append(usual(param, name, step, sample))
        return seen[name, step, sample][-1]

    optimizer = build(infos, draw, restore=restore, samples=samples)
    for _ in range(2):
        optimizer.step(quadratic(infos))
    assert len(seen) == 3 * 2 * samples
    for drawn in seen.values():
        assert len(drawn) == (3 if restore == "exact" else 4)
        assert all(torch.equal(drawn[0], other) for other in drawn)
    different = [drawn[0].flatten()[:8] for drawn in seen.values()]
    assert len({tuple(d.tolist()) for d in different}) == len(seen)


def test_the_directions_depend_on_seed_step_sample_and_name_and_not_on_order():
    param, draw = parameters()[0].param, seeded(0)
    base = draw(param, "x", 0, 0)
    assert torch.equal(base, seeded(0)(param, "x", 0, 0)) and base.dtype == param.dtype
    others = [
        seeded(1)(param, "x", 0, 0),
        draw(param, "y", 0, 0),
        draw(param, "x", 1, 0),
        draw(param, "x", 0, 1),
    ]
    assert not any(torch.equal(base, other) for other in others)


def test_the_ambient_generator_is_neither_read_nor_moved():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    infos = parameters()
    build(infos).step(quadratic(infos))
    assert torch.equal(torch.get_rng_state(), state)


def test_several_samples_are_averaged_at_one_point():
    infos = parameters(torch.float64)
    loss, before = quadratic(infos), values(infos)
    g = gradient(infos, loss)
    wanted = [torch.zeros_like(old) for old in before]
    for sample in range(3):
        z = directions(infos, sample=sample)
        slope = sum((a * b).sum() for a, b in zip(g, z, strict=True))
        wanted = [w + slope * d / 3 for w, d in zip(wanted, z, strict=True)]
    build(infos, lr=0.01, samples=3).step(loss)
    for info, old, w in zip(infos, before, wanted, strict=True):
        torch.testing.assert_close(info.param.data, old - 0.01 * w, rtol=1e-5, atol=1e-6)


def test_decay_is_in_the_update_alone_and_spares_biases_and_norms():
    infos = [*parameters(), ParamInfo("head.bias", nn.Parameter(tensor(5, seed=8)), "vector")]
    infos.append(ParamInfo("mlp.bias_B", nn.Parameter(tensor(5, 2, seed=9)), "matrix"))
    before = values(infos)
    seen = []

    def closure():
        seen.append(values(infos))
        return torch.tensor(1.0)

    build(infos, lr=0.1, weight_decay=0.5).step(closure)
    for info, old, ahead, behind in zip(infos, before, *seen, strict=True):
        torch.testing.assert_close((ahead + behind) / 2, old, rtol=1e-5, atol=1e-6)
        decays = info.role in ("lora_A", "lora_B")
        torch.testing.assert_close(
            info.param.data, old * (1 - 0.1 * 0.5) if decays else old, rtol=1e-6, atol=0
        )


def test_what_is_frozen_stays_out_of_it():
    infos = parameters()
    infos[1].param.requires_grad_(False)
    before, during = infos[1].param.detach().clone(), []
    optimizer = build(infos, lr=0.1)
    optimizer.step(lambda: during.append(infos[1].param.detach().clone()) or quadratic(infos)())
    assert all(torch.equal(before, value) for value in [*during, infos[1].param])


def test_every_evaluation_sees_that_the_parameters_changed():
    """Adapters keep what they derived from a parameter until its version counter moves."""
    infos, versions = parameters(), []
    optimizer = build(infos)
    for _ in range(2):
        optimizer.step(lambda: versions.append(infos[0].param._version) or quadratic(infos)())
    assert len(set(versions)) == 4 and infos[0].param._version > versions[-1]


def test_it_keeps_no_state_but_a_step_count_and_resumes_from_it():
    infos, others = parameters(), parameters()
    optimizer, resumed = build(infos, lr=1e-3), build(others, lr=1e-3)
    for _ in range(3):
        optimizer.step(quadratic(infos))
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"] == {} and {group["steps"] for group in saved["param_groups"]} == {3}
    for own, other in zip(infos, others, strict=True):
        other.param.data.copy_(own.param.data)
    resumed.load_state_dict(saved)
    for _ in range(3):
        assert optimizer.step(quadratic(infos)) == resumed.step(quadratic(others))
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, others, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_given_their_directions_it_follows_the_authors_code(weight_decay):
    """zo_step and zo_update of princeton-nlp/MeZO, with one generator that is seeded again before every pass."""
    infos, theirs = parameters(), parameters()
    lr, eps = 1e-3, 1e-3
    names = [info.name for info in infos]

    def draws(step):
        generator = torch.Generator().manual_seed(1000 + step)
        return {i.name: torch.normal(0, 1, size=i.param.shape, generator=generator) for i in theirs}

    optimizer = build(infos, lambda p, n, step, s: draws(step)[n], lr=lr, eps=eps, weight_decay=weight_decay)
    for step in range(4):
        loss1 = optimizer.step(quadratic(infos))
        own = quadratic(theirs)
        with torch.no_grad():
            losses = []
            for factor in (1, -2, 1):
                for info in theirs:
                    info.param.data = info.param.data + factor * draws(step)[info.name] * eps
                losses.append(own())
            g = ((losses[0] - losses[1]) / (2 * eps)).item()
            for info in theirs:
                decay = 0.0 if info.name == names[2] else weight_decay
                info.param.data = info.param.data - lr * (
                    g * draws(step)[info.name] + decay * info.param.data
                )
        assert loss1.item() == pytest.approx(losses[0].item(), rel=1e-5)
    for one, other in zip(infos, theirs, strict=True):
        torch.testing.assert_close(one.param, other.param, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mezo", "quzo"])
def test_compiling_passes_that_take_no_gradients_is_refused(name):
    """Only passes with gradients are compiled, so it would change nothing without a word."""
    section = f"optimizer={{method: {name}}}"
    with pytest.raises(
        RecipeError, match=rf"optimizer\.method: {name} requires .* write model\.compile: false"
    ):
        load_recipe("smoke/lora", ["model.name=x/y", section, "train.clip=null", "model.compile=true"])
