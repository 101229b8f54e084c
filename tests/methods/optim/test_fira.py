"""Fira moves as the authors' code does; what it adds to GaLore is bounded and vanishes at full rank."""

from functools import partial

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim._projection import back, held, project
from lrft.registry.axes import OPTIMIZERS
from tests.methods.optim.moved import growth_of_norms, moved_apart, parameters, resumed, step

SETTINGS = {"rank": 4, "update_every": 4, "lr": 0.01}


def build(infos, name="fira", **settings):
    return OPTIMIZERS.get(name).build(infos, OPTIMIZERS.declared(name).config(method=name, **settings))


def trained(steps=10, name="fira", dtype=torch.float32, **settings):
    infos = parameters(dtype)
    optimizer = build(infos, name, **{**SETTINGS, **settings})
    for t in range(steps):
        step(optimizer, [info.param for info in infos], t)
    return optimizer, [info.param.detach() for info in infos]


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_it_is_the_authors_code_step_for_step_through_two_refreshes(scale):
    fira = pytest.importorskip("fira")
    params = [info.param for info in parameters()]
    groups = [
        {"params": params[:3], "rank": 4, "update_proj_gap": 4, "alpha": scale, "proj_type": "std"},
        {"params": params[3:]},
    ]
    theirs = fira.FiraAdamW(groups, lr=0.01, weight_decay=0.1, no_deprecation_warning=True)
    for t in range(10):
        step(theirs, params, t)
    _, found = trained(scale=scale, weight_decay=0.1)
    for ours, other in zip(found, params, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=1e-5, atol=1e-6)


def outside(param, optimizer, scale):
    """S of a first step, from its definition: phi (G - scale P^T P G)."""
    basis = held(optimizer.state[param])
    low = project(param.grad, basis)
    axis = 1 if "right" in basis else 0
    direction = 0.1 * low / ((0.001 * low.square()).sqrt() + 1e-6)
    phi = direction.norm(dim=axis, keepdim=True) / (low.norm(dim=axis, keepdim=True) + 1e-8)
    assert (phi >= 0).all() and phi.numel() == max(param.shape)
    return direction, phi * (param.grad - scale * back(low, basis)), basis


@pytest.mark.parametrize(("residual", "factor"), [("code", 0.25), ("paper", 1.0)])
def test_the_residual_of_the_code_keeps_a_part_of_the_subspace_and_that_of_the_paper_none(residual, factor):
    optimizer, _ = trained(steps=1, residual=residual)
    for param, info in zip(optimizer.param_groups[0]["params"], parameters(), strict=False):
        direction, rest, basis = outside(param, optimizer, factor)
        rate = 0.01 * (1 - 0.999) ** 0.5 / (1 - 0.9)
        expected = info.param.detach() - rate * (0.25 * back(direction, basis) + rest)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-5, atol=1e-6)
        remains = project(rest, basis).norm() / rest.norm()
        assert remains < 0.9 and (remains > 0.3) == (residual == "code")


def test_at_full_rank_and_scale_one_it_is_galore():
    """What is outside of the subspace is then rounding noise.

    One projection for all steps: on some processors that noise turns the sign of a singular vector of a later one.
    """
    settings = {"rank": 16, "scale": 1.0, "update_every": 10, "weight_decay": 0.1}
    for a, b in zip(trained(**settings)[1], trained(name="galore", **settings)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["reverse_std", "left", "right"])
def test_every_side_has_one_factor_for_each_index_that_is_not_compressed(side):
    optimizer, _ = trained(steps=1, side=side)
    for param, info in zip(optimizer.param_groups[0]["params"], parameters(), strict=False):
        basis = held(optimizer.state[param])
        low = project(param.grad, basis)
        axis = 1 if "right" in basis else 0
        direction = 0.1 * low / ((0.001 * low.square()).sqrt() + 1e-6)
        phi = direction.norm(dim=axis, keepdim=True) / low.norm(dim=axis, keepdim=True)
        assert phi.numel() == param.shape[1 - axis]
        change = 0.25 * back(direction, basis) + phi * (param.grad - 0.25 * back(low, basis))
        rate = 0.01 * (1 - 0.999) ** 0.5 / (1 - 0.9)
        torch.testing.assert_close(param.detach(), info.param.detach() - rate * change, rtol=1e-4, atol=1e-5)


def test_the_residual_grows_by_at_most_a_hundredth_a_step():
    """The gradients of these steps grow faster than that, so that the bound is reached."""
    infos = parameters()
    optimizer = build(infos, **SETTINGS)
    growth = growth_of_norms(optimizer, infos)
    assert (growth <= 1.01 * (1 + 1e-6)).all() and (growth > 1.0099).any()


def test_the_first_step_is_not_limited_whatever_its_size():
    infos = parameters()
    optimizer = build(infos, **SETTINGS)
    for info in infos:
        info.param.grad = 1e4 * torch.ones_like(info.param) + torch.randn_like(info.param)
    optimizer.step()
    for info in infos[:3]:
        _, rest, _ = outside(info.param, optimizer, 0.25)
        torch.testing.assert_close(optimizer.state[info.param]["norm"], rest.norm(), rtol=1e-4, atol=0)


def test_a_first_gradient_of_zeros_does_not_hold_back_the_next():
    """The A of a LoRA adapter has one, and a norm of zero would let the residual grow from nothing."""
    infos = [ParamInfo("s.A", torch.nn.Parameter(torch.ones(8, 32)), "lora_A", "s")]
    optimizer = build(infos, project=["lora_A", "lora_B"], **SETTINGS)
    param = infos[0].param
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert "norm" not in optimizer.state[param] and optimizer.state[param]["step"] == 1
    step(optimizer, [param], 0)
    assert optimizer.state[param]["norm"] > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_resumed_within_a_period_is_the_unbroken_one_bit_for_bit(dtype):
    optimizer, _ = trained(steps=6, dtype=dtype, weight_decay=0.1)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    twins = parameters(dtype)
    other = resumed(optimizer, params, twins, partial(build, weight_decay=0.1, **SETTINGS))
    assert all(torch.equal(a, twin.param) for a, twin in zip(params, twins, strict=True))
    norms = [[kept["norm"] for kept in o.state.values() if "norm" in kept] for o in (optimizer, other)]
    assert len(norms[0]) == 3 and norms[0] == norms[1] and norms[0][0].dtype == torch.float32


def test_one_optimizer_a_parameter_is_the_same_as_one_for_all():
    _, together = trained(projection="random")
    apart = moved_apart(partial(build, projection="random", **SETTINGS))
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_weight_decay_does_not_depend_on_scale():
    for scale in (0.25, 1.0):
        plain, decayed = (trained(steps=1, scale=scale, weight_decay=wd)[1] for wd in (0.0, 0.2))
        for a, b in zip(plain, decayed, strict=True):
            torch.testing.assert_close(b, a * (1 - 0.01 * 0.2), rtol=1e-6, atol=1e-8)
