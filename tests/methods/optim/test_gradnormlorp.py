"""GradNormLoRP: both sides of every factor's gradient are projected, and rows stay as long as their magnitude."""

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.methods.adapters.dora import DoRA
from lrft.methods.optim._projection import back, held, project
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS
from lrft.registry.errors import RecipeError

OUT, IN, R = 24, 18, 6


def make(**settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(OUT, IN))
    adapter = DoRA(DoRA.Config(method="dora", rank=R, alpha=2.0 * R), Site("s", IN, OUT))
    adapter.start(base.weight())
    torch.nn.init.normal_(adapter.B)
    infos = [ParamInfo(name, p, DoRA.roles[name], "s") for name, p in adapter.named_parameters()]
    declared = OPTIMIZERS.declared("gradnormlorp").config
    config = declared(method="gradnormlorp", **{"lr": 1e-2, "rank": 3, "update_every": 2, **settings})
    return Adapted(base, adapter), infos, OPTIMIZERS.get("gradnormlorp").build(infos, config)


def step(site, optimizer, t):
    optimizer.zero_grad()
    x = torch.randn(12, IN, generator=torch.Generator().manual_seed(t))
    (site(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
    optimizer.step()


def test_steps_follow_the_equations_through_a_refresh():
    """For A and for B: subspaces by torch.linalg.svd, moments and update written out."""
    site, infos, optimizer = make(weight_decay=0.1, scale=4.0)
    factors = [info for info in infos if info.role != "magnitude"]
    m, v = dict.fromkeys("AB", 0.0), dict.fromkeys("AB", 0.0)
    for t in range(1, 5):
        before = {info.name: info.param.detach().clone() for info in factors}
        step(site, optimizer, t)
        for info in factors:
            D, state, name = info.param.grad, optimizer.state[info.param], info.name
            U, V = state["left"], state["right"]
            if t % 2 == 1:
                left, _, right = torch.linalg.svd(D, full_matrices=False)
                torch.testing.assert_close(U @ U.mT, left[:, :3] @ left[:, :3].mT, rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(V.mT @ V, right[:3].mT @ right[:3], rtol=1e-3, atol=1e-4)
            low = U.mT @ D @ V.mT
            m[name], v[name] = 0.9 * m[name] + 0.1 * low, 0.999 * v[name] + 0.001 * low**2
            rate = 1e-2 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            N = m[name] / (v[name].sqrt() + 1e-6)
            expected = (before[name] - 4.0 * rate * U @ N @ V) * (1 - 1e-2 * 0.1)
            torch.testing.assert_close(info.param.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_update_of_a_factor_lies_in_the_subspaces_of_both_sides():
    site, infos, optimizer = make()
    for t in range(3):
        before = [info.param.detach().clone() for info in infos]
        step(site, optimizer, t)
    for info, old in zip(infos, before, strict=True):
        if info.role == "magnitude":
            continue
        change, basis = info.param.detach() - old, held(optimizer.state[info.param])
        assert set(basis) == {"left", "right"}
        torch.testing.assert_close(back(project(change, basis), basis), change, rtol=1e-3, atol=1e-5)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 3


def test_rows_of_the_weight_are_as_long_as_their_magnitude_after_every_step():
    site, _, optimizer = make()
    start = site.adapter.m.detach().clone()
    for t in range(3):
        step(site, optimizer, t)
        torch.testing.assert_close(
            site.merged_weight().norm(dim=1), site.adapter.m.detach(), rtol=1e-5, atol=1e-5
        )
    assert (site.adapter.m - start).abs().min() > 1e-3


def test_state_is_that_of_its_formula():
    site, _, optimizer = make()
    step(site, optimizer, 0)
    tensors = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    numbers = sum(t.numel() for t in tensors)
    assert numbers == (2 * 9 + 3 * (R + IN)) + (2 * 9 + 3 * (OUT + R)) + 2 * OUT


def test_one_side_is_galore_to_the_bit():
    site, infos, optimizer = make(side="std")
    twin, others, _ = make()
    settings = {"lr": 1e-2, "rank": 3, "update_every": 2, "scale": 4.0, "project": ["lora_A", "lora_B"]}
    galore = OPTIMIZERS.get("galore").build(
        others, OPTIMIZERS.declared("galore").config(method="galore", **settings)
    )
    for t in range(4):
        step(site, optimizer, t)
        step(twin, galore, t)
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, others, strict=True))


def test_an_adapter_without_a_magnitude_is_refused():
    with pytest.raises(RecipeError, match="gradnormlorp"):
        load_recipe("smoke/gradnormlorp", ["adapter=lora", "model.name=x/y"])
