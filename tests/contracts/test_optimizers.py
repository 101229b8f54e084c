"""What every optimizer promises, whatever its name."""

import copy
import inspect
import json

import pytest
import torch
from safetensors.torch import load, save
from torch.optim.lr_scheduler import LambdaLR

from lrft.core.axes import OPTIMIZERS
from lrft.core.params import ParamInfo
from lrft.train.flatten import flatten, unflatten

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS.names())

# Above and below the 4096 numbers from which on state takes 8 bits; two dimensions and one; adapter and base.
SHAPES = {
    "a.A": ((8, 600), "lora_A", "a"),
    "a.B": ((600, 8), "lora_B", "a"),
    "a.magnitude": ((600,), "magnitude", "a"),
    "b.A": ((2, 10), "lora_A", "b"),
    "b.B": ((10, 2), "lora_B", "b"),
    "emb.A": ((4, 1100), "embedding", "emb"),
    "head.weight": ((70, 64), "matrix", ""),
    "norm.weight": ((64,), "vector", ""),
    "head.bias": ((70,), "vector", ""),
}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        ParamInfo(name, torch.nn.Parameter(torch.randn(shape, generator=generator)), role, site)
        for name, (shape, role, site) in SHAPES.items()
    ]


def build(name, infos, **settings):
    declared = OPTIMIZERS.declared(name)
    return OPTIMIZERS.get(name).build(infos, declared.config(method=name, **settings))


def step(optimizer, infos, t):
    """One step along a gradient that depends on the parameters and on t."""
    for index, info in enumerate(infos):
        generator = torch.Generator().manual_seed(1000 * t + index)
        info.param.grad = info.param.detach() * 0.1 + torch.randn(info.param.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def values(infos):
    return [info.param.detach().clone() for info in infos]


def through_files(state):
    """As a checkpoint does it: tensors to safetensors, everything else to JSON, and back."""
    tensors, plain = flatten(state)
    stored = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return unflatten(load(stored), json.loads(json.dumps(plain)))


@every_optimizer
def test_it_is_a_torch_optimizer_over_every_parameter_exactly_once(name):
    infos = parameters()
    optimizer = build(name, infos)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(info.param) for info in infos)
    assert all(group["params"] for group in optimizer.param_groups)


@every_optimizer
def test_it_lowers_a_quadratic(name):
    infos = parameters()
    goals = values(parameters(seed=1))
    optimizer = build(name, infos, lr=0.01)

    def loss():
        return sum((i.param - goal).square().mean() for i, goal in zip(infos, goals, strict=True))

    before = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before


@every_optimizer
def test_masters_stay_float32_and_in_place(name):
    infos = parameters()
    addresses = [info.param.data_ptr() for info in infos]
    step(build(name, infos), infos, 0)
    assert all(info.param.dtype == torch.float32 for info in infos)
    assert [info.param.data_ptr() for info in infos] == addresses


@every_optimizer
def test_a_schedule_multiplies_each_groups_own_rate(name):
    infos = parameters()
    optimizer = build(name, infos, lr=0.01)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = LambdaLR(optimizer, lambda t: 0.5**t)
    step(optimizer, infos, 0)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * rate for rate in rates])


@every_optimizer
def test_a_group_at_rate_zero_does_not_move_and_the_others_do(name):
    infos = parameters()
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    still = optimizer.param_groups[0]
    still["lr"] = 0.0
    before = dict(zip((id(i.param) for i in infos), values(infos), strict=True))
    step(optimizer, infos, 0)
    for group in optimizer.param_groups:
        for param in group["params"]:
            assert torch.equal(param, before[id(param)]) == (group is still)


@every_optimizer
def test_the_step_is_proportional_to_the_rate(name):
    moved = []
    for lr in (1e-3, 2e-3):
        infos = parameters()
        optimizer = build(name, infos, lr=1e-3)
        for group in optimizer.param_groups:
            group["lr"] *= lr / 1e-3
        before = values(infos)
        step(optimizer, infos, 0)
        moved.append([after - old for after, old in zip(values(infos), before, strict=True)])
    for once, twice in zip(*moved, strict=True):
        torch.testing.assert_close(2 * once, twice, rtol=2e-3, atol=1e-6)


@every_optimizer
def test_a_run_continued_from_files_is_bit_for_bit_the_unbroken_one(name):
    infos = parameters()
    optimizer = build(name, infos, lr=0.01, weight_decay=0.05)
    for t in range(3):
        step(optimizer, infos, t)
    state = through_files(optimizer.state_dict())
    twins = [ParamInfo(i.name, torch.nn.Parameter(i.param.detach().clone()), i.role, i.site) for i in infos]
    for t in range(3, 6):
        step(optimizer, infos, t)

    resumed = build(name, twins, lr=0.01, weight_decay=0.05)
    resumed.load_state_dict(state)
    for t in range(3, 6):
        step(resumed, twins, t)
    assert all(torch.equal(a, b) for a, b in zip(values(infos), values(twins), strict=True))
    (tensors, plain), (own_tensors, own_plain) = (
        flatten(optimizer.state_dict()),
        flatten(resumed.state_dict()),
    )
    assert plain == own_plain
    assert all(torch.equal(tensor, own_tensors[key]) for key, tensor in tensors.items())
    assert all(tensor.dtype == own_tensors[key].dtype for key, tensor in tensors.items())


@every_optimizer
def test_without_its_state_a_run_does_not_continue(name):
    """Guards the test above: a state that is ignored would otherwise pass it."""
    infos = parameters()
    optimizer = build(name, infos, lr=0.01)
    for t in range(3):
        step(optimizer, infos, t)
    if not flatten(optimizer.state_dict()["state"])[0]:
        pytest.fail("the default settings keep no state at all")
    twins = [ParamInfo(i.name, torch.nn.Parameter(i.param.detach().clone()), i.role, i.site) for i in infos]
    fresh = build(name, twins, lr=0.01)
    step(optimizer, infos, 3)
    step(fresh, twins, 3)
    assert not any(torch.equal(a, b) for a, b in zip(values(infos), values(twins), strict=True))


@every_optimizer
def test_the_state_shares_no_memory_between_its_tensors(name):
    infos = parameters()
    optimizer = build(name, infos)
    step(optimizer, infos, 0)
    tensors, _ = flatten(optimizer.state_dict())
    addresses = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    assert len(set(addresses)) == len(addresses)


@every_optimizer
def test_loading_a_state_takes_the_saved_rates(name):
    infos = parameters()
    optimizer = build(name, infos, lr=0.01)
    schedule = LambdaLR(optimizer, lambda t: 0.5**t)
    step(optimizer, infos, 0)
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    resumed = build(name, parameters(), lr=0.01)
    resumed.load_state_dict(through_files(optimizer.state_dict()))
    assert [group["lr"] for group in resumed.param_groups] == rates


@every_optimizer
def test_a_parameter_without_a_gradient_is_left_alone(name):
    infos = parameters()
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before = values(infos)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, values(infos), strict=True))
    infos[0].param.grad = torch.ones_like(infos[0].param)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, values(infos), strict=True)]
    assert moved == [True] + [False] * (len(infos) - 1)
    resumed = build(name, copy.deepcopy(infos), lr=0.01)
    resumed.load_state_dict(through_files(optimizer.state_dict()))


@every_optimizer
def test_weight_decay_shrinks_by_one_minus_rate_times_decay_whatever_the_gradients_were(name):
    """Decoupled: with zero gradients n steps multiply a decayed parameter by (1 - lr wd)^n, nothing else."""
    infos = parameters()
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before = dict(zip((id(i.param) for i in infos), values(infos), strict=True))
    for _ in range(3):
        for info in infos:
            info.param.grad = torch.zeros_like(info.param)
        optimizer.step()
    decayed = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            factor = (1 - group["lr"] * 0.1) ** 3
            shrunk = torch.allclose(param, before[id(param)] * factor, rtol=1e-6, atol=0)
            assert shrunk or torch.equal(param, before[id(param)])
            decayed += shrunk
    names = {info.name for info in infos if not torch.equal(info.param, before[id(info.param)])}
    assert {"a.A", "a.B", "a.magnitude", "head.weight"} <= names
    assert decayed >= len(infos) - 2


@every_optimizer
def test_the_decay_of_a_step_does_not_depend_on_its_gradient(name):
    plain, decayed = parameters(), parameters()
    pair = [(build(name, plain, lr=0.01), plain), (build(name, decayed, lr=0.01, weight_decay=0.1), decayed)]
    start = values(plain)
    gradients = values(parameters(seed=2))
    for optimizer, infos in pair:
        for info, gradient in zip(infos, gradients, strict=True):
            info.param.grad = gradient.clone()
        optimizer.step()
    rates = {id(p): group["lr"] for group in pair[1][0].param_groups for p in group["params"]}
    for info, other, old in zip(plain, decayed, start, strict=True):
        if info.site:
            expected = info.param - rates[id(other.param)] * 0.1 * old
            torch.testing.assert_close(other.param.data, expected.data, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_the_docstring_gives_update_state_and_source(name):
    text = inspect.getdoc(OPTIMIZERS.get(name)) or ""
    assert "State:" in text and "bytes per number" in text
    assert "Source:" in text and "Departures:" in text


@every_optimizer
def test_a_config_refuses_what_cannot_be(name):
    config = OPTIMIZERS.declared(name).config
    for wrong in ({"lr": 0.0}, {"lr": -1e-3}, {"weight_decay": -0.1}, {"learning_rate": 0.1}):
        with pytest.raises(ValueError):
            config(method=name, **wrong)
