"""Schedule-free AdamW: its equations, and that the loop scores and saves the average."""

import copy

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim.schedule_free import ScheduleFree
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from lrft.training import updates

LR, DECAY = 0.05, 0.1


def build(seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 5), "b": (7,)}
    infos = [
        ParamInfo(name, torch.nn.Parameter(torch.randn(shape, generator=generator)), "matrix")
        for name, shape in shapes.items()
    ]
    config = ScheduleFree.Config(method="schedule_free", **{"lr": LR, "weight_decay": DECAY, **settings})
    return infos, ScheduleFree.build(infos, config)


def goal(param):
    return torch.linspace(-1, 1, param.numel()).view(param.shape)


def step(infos, optimizer, rate=LR):
    optimizer.param_groups[0]["lr"] = rate
    optimizer.lead()
    loss = sum((i.param - goal(i.param)).pow(4).sum() for i in infos)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def written_out(start, rates, beta1=0.9, beta2=0.999):
    """x and z after the steps, float64, with y formed anew from them at every step."""
    x = z = start.double()
    v, weights = 0.0, []
    for t, rate in enumerate(rates, start=1):
        y = (1 - beta1) * z + beta1 * x
        g = 4 * (y - goal(y).float()) ** 3
        v = beta2 * v + (1 - beta2) * g**2
        weights.append(max(rates[:t]) ** 2)
        z = z - rate * (g / ((v / (1 - beta2**t)).sqrt() + 1e-8) + DECAY * y)
        c = weights[-1] / sum(weights)
        x = (1 - c) * x + c * z
    return x, z


def test_steps_follow_the_equations_through_a_warm_up():
    infos, optimizer = build()
    starts = [info.param.detach().clone() for info in infos]
    rates = [0.01, 0.03, LR, LR, LR, LR]
    for rate in rates:
        step(infos, optimizer, rate)
    for info, start in zip(infos, starts, strict=True):
        x, z = written_out(start, rates)
        torch.testing.assert_close(info.param.detach().double(), x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state[info.param]["z"].double(), z, rtol=1e-5, atol=1e-6)


def test_it_is_the_authors_package_step_for_step():
    theirs = pytest.importorskip("schedulefree").AdamWScheduleFree
    infos, optimizer = build()
    others, _ = build()
    reference = theirs([other.param for other in others], lr=LR, weight_decay=DECAY)
    for _ in range(8):
        step(infos, optimizer)
        reference.train()
        sum((o.param - goal(o.param)).pow(4).sum() for o in others).backward()
        reference.step()
        reference.zero_grad()
    reference.eval()
    for info, other in zip(infos, others, strict=True):
        torch.testing.assert_close(info.param, other.param, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_left_out_leaves_the_average_and_so_does_a_missing_gradient():
    infos, optimizer = build()
    for _ in range(3):
        step(infos, optimizer)
    before = [info.param.detach().clone() for info in infos]
    optimizer.lead()
    ahead = [info.param.detach().clone() for info in infos]
    optimizer.lead()
    assert all(torch.equal(info.param, one) for info, one in zip(infos, ahead, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, ahead, strict=True))
    optimizer.rejoin()
    for info, old in zip(infos, before, strict=True):
        torch.testing.assert_close(info.param.detach(), old, rtol=1e-6, atol=1e-6)
    optimizer.lead()
    optimizer.step()
    for info, old in zip(infos, before, strict=True):
        torch.testing.assert_close(info.param.detach(), old, rtol=1e-6, atol=1e-6)


def test_what_moves_parameters_between_two_steps_is_refused_unless_their_state_goes():
    infos, optimizer = build()
    step(infos, optimizer)
    with torch.no_grad():
        infos[0].param.mul_(0.5)
    with pytest.raises(RecipeError, match="something else moved"):
        step(infos, optimizer)
    optimizer.state.pop(infos[0].param)
    step(infos, optimizer)


def test_a_run_goes_on_from_its_state_to_the_bit():
    infos, optimizer = build()
    for _ in range(3):
        step(infos, optimizer)
    others, resumed = build(seed=1)
    for info, other in zip(infos, others, strict=True):
        other.param.data.copy_(info.param)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(infos, optimizer)
        step(others, resumed)
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, others, strict=True))


def test_a_falling_schedule_is_refused():
    with pytest.raises(RecipeError, match=r"schedule\.method: .*write constant"):
        load_recipe("smoke/schedule_free", ["schedule=cosine", "model.name=x/y"])
    with pytest.raises(RecipeError, match=r"optimizer\.per_layer: .*write false"):
        load_recipe("smoke/schedule_free", ["optimizer.per_layer=true", "train.clip=null", "model.name=x/y"])


def test_weights_in_half_precision_are_refused():
    info = ParamInfo("w", torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)), "matrix")
    with pytest.raises(ValueError, match="w trains in less than float32"):
        ScheduleFree.build([info], ScheduleFree.Config(method="schedule_free"))
    master = {"update": "master", "per_layer": False, "seed": 0}
    config = ScheduleFree.Config(method="schedule_free")
    with pytest.raises(ValueError, match="write update: in_place"):
        updates.build(lambda infos: ScheduleFree.build(infos, config), [info], **master)
