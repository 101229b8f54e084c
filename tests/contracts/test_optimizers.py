"""What every optimizer promises, whatever its name.

A step is taken on a loss: gradients of it for most, the closure itself for optimizers that declare `calls_closure`.
"""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch.optim.lr_scheduler import LambdaLR

from lrft.build.measure import optimizer_bytes
from lrft.build.optimizing import build_optimizer
from lrft.core.optimizer import Optimizer, contract_of, lead
from lrft.core.params import ParamInfo
from lrft.files.pages import PageFile
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import RecipeError
from lrft.training import paged_state
from lrft.training.flatten import flatten, unflatten
from lrft.training.paged_state import PagedState
from lrft.training.updates import state_bytes
from tests.each import each
from tests.same_state import same

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
SCALING = {"a": 2.0, "b": 0.5}


@every_optimizer
def test_updates_in_the_backward_pass_are_refused_where_parameters_are_looked_at_together(name):
    given = ["model.name=x/y", "optimizer.per_layer=true", "train.clip=null"]
    try:
        load_recipe(f"smoke/{name}", given)
    except RecipeError as error:
        refused = "looks at several parameters at once" in str(error)
    else:
        refused = False
    assert refused == ("per_parameter" not in OPTIMIZERS.declared(name).provides)


def calls_closure(name):
    return OPTIMIZERS.get(name).calls_closure


with_closure = pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if calls_closure(n)])
with_gradients = pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if not calls_closure(n)])


def parameters(name, seed=0, values=None, device="cpu"):
    """What trains, as the optimizer requires it: the factors A only where it does not want them frozen."""
    generator = torch.Generator().manual_seed(seed)
    frozen_A = "frozen_A" in OPTIMIZERS.declared(name).requires
    tensors = {}
    for key, (shape, role, _) in SHAPES.items():
        value = torch.randn(shape, generator=generator) if values is None else values[key].clone()
        trains = not (frozen_A and role == "lora_A")
        tensors[key] = torch.nn.Parameter(value.to(device), requires_grad=trains)
    found = []
    for key, (_, role, site) in SHAPES.items():
        other = {"lora_A": f"{site}.B", "lora_B": f"{site}.A"}.get(role)
        partner, scaling = tensors.get(other), SCALING.get(site, 1.0)
        if tensors[key].requires_grad:
            found.append(ParamInfo(key, tensors[key], role, site, scaling=scaling, partner=partner))
    return found


def everything(infos):
    """Name -> tensor, of what trains and of frozen partners."""
    found = {info.name: info.param for info in infos}
    for info in infos:
        if info.partner is not None:
            found.setdefault(f"{info.site}.{'A' if info.role == 'lora_B' else 'B'}", info.partner)
    return found


def twins(name, infos):
    """The same parameters once more, at the same values."""
    return parameters(name, values={key: t.detach() for key, t in everything(infos).items()})


def alone(name, infos):
    """The fewest parameters that can move while all others rest: one, or a site's where factors move together."""
    if "low_rank" in OPTIMIZERS.declared(name).requires:
        return [info for info in infos if info.site == infos[0].site and info.role in ("lora_A", "lora_B")]
    return infos[:1]


def build(name, infos, **settings):
    declared = OPTIMIZERS.declared(name)
    return OPTIMIZERS.get(name).build(infos, declared.config(method=name, **settings))


def move(optimizer, loss):
    """One step on `loss()`, as the training loop takes it."""
    if contract_of(optimizer).calls_closure:
        return optimizer.step(loss)
    optimizer.zero_grad(set_to_none=True)
    lead(optimizer)
    loss().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return None


def noisy(infos, t):
    """A loss whose gradient is 0.1 p + noise of step t."""

    def loss():
        total = torch.zeros(())
        for index, info in enumerate(infos):
            generator = torch.Generator().manual_seed(1000 * t + index)
            noise = torch.randn(info.param.shape, generator=generator)
            total = total + (0.05 * info.param.square() + noise * info.param).sum()
        return total

    return loss


def step(optimizer, infos, t):
    """One step along a gradient that depends on the parameters and on t."""
    move(optimizer, noisy(infos, t))


def flat(infos):
    """A loss that does not depend on the parameters: gradients exist and are 0."""
    return lambda: sum((0.0 * info.param).sum() for info in infos)


def values(infos):
    return [info.param.detach().clone() for info in infos]


def through_files(state):
    """As a checkpoint does it: tensors to safetensors, everything else to JSON, and back."""
    tensors, plain = flatten(state)
    stored = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return unflatten(load(stored), json.loads(json.dumps(plain)))


def quadratic(infos, goals):
    """Squared distance to the goals: of the product of two factors, and of every other tensor itself."""
    own, wanted = everything(infos), everything(goals)
    products = [site for site in SCALING if f"{site}.A" in own]
    singles = [key for key in own if key.partition(".")[0] not in products or "magnitude" in key]

    def loss():
        total = sum((own[key] - wanted[key]).square().mean() for key in singles)
        for site in products:
            found, goal = (SCALING[site] * t[f"{site}.B"] @ t[f"{site}.A"] for t in (own, wanted))
            total = total + (found - goal.detach()).square().mean() / goal.detach().square().mean()
        return total

    return loss


@every_optimizer
def test_it_needs_backpropagation_or_calls_the_closure_itself(name):
    declared = OPTIMIZERS.declared(name)
    assert ("backward" in declared.requires) != calls_closure(name)
    assert "backward" in declared.requires or not {"clippable", "per_parameter"} & declared.provides


@every_optimizer
def test_it_is_a_torch_optimizer_over_every_parameter_exactly_once(name):
    infos = parameters(name)
    optimizer = build(name, infos)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(info.param) for info in infos)
    assert all(group["params"] for group in optimizer.param_groups)


@every_optimizer
def test_it_lowers_a_quadratic(name):
    """A little at its own default rate, whatever the scale of that, and a lot at some multiple of it."""
    steps = (
        600 if calls_closure(name) else 40
    )  # two losses tell far less of 15,000 numbers than a gradient does
    default = OPTIMIZERS.declared(name).config(method=name).lr
    found = []
    for rate in (default, 10 * default, 100 * default, 1000 * default):
        infos = parameters(name)
        loss = quadratic(infos, parameters(name, seed=1))
        optimizer, before = build(name, infos, lr=rate), loss().item()
        for _ in range(steps):
            move(optimizer, loss)
        found.append(loss().item() / before)
        if found[-1] < 0.9:
            break
    assert found[0] < 1 and found[-1] < 0.9


@every_optimizer
def test_it_says_how_it_wants_to_be_used(name):
    """By the contract's attributes, on the class and on what it builds."""
    assert issubclass(OPTIMIZERS.get(name), Optimizer)
    assert isinstance(build(name, parameters(name)), Optimizer)


@every_optimizer
def test_masters_stay_float32_and_in_place(name):
    infos = parameters(name)
    addresses = [info.param.data_ptr() for info in infos]
    step(build(name, infos), infos, 0)
    assert all(info.param.dtype == torch.float32 for info in infos)
    assert [info.param.data_ptr() for info in infos] == addresses


@every_optimizer
def test_a_frozen_factor_is_untouched(name):
    infos = parameters(name)
    trained = {info.name for info in infos}
    frozen = {key: t for key, t in everything(infos).items() if key not in trained}
    assert bool(frozen) == ("frozen_A" in OPTIMIZERS.declared(name).requires)
    before = {key: tensor.clone() for key, tensor in frozen.items()}
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    for t in range(3):
        step(optimizer, infos, t)
    assert all(torch.equal(tensor, before[key]) for key, tensor in frozen.items())


@every_optimizer
def test_a_schedule_multiplies_each_groups_own_rate(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = LambdaLR(optimizer, lambda t: 0.5**t)
    step(optimizer, infos, 0)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * rate for rate in rates])


@every_optimizer
def test_a_group_at_rate_zero_does_not_move_and_the_others_do(name):
    infos = parameters(name)
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
        infos = parameters(name)
        optimizer = build(name, infos, lr=1e-3)
        for group in optimizer.param_groups:
            group["lr"] *= lr / 1e-3
        before = values(infos)
        step(optimizer, infos, 0)
        moved.append([after - old for after, old in zip(values(infos), before, strict=True)])
    for once, twice in zip(*moved, strict=True):
        assert once.abs().max() > 0
        torch.testing.assert_close(2 * once, twice, rtol=2e-3, atol=1e-6)


@every_optimizer
def test_a_run_continued_from_files_is_bit_for_bit_the_unbroken_one(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01, weight_decay=0.05)
    for t in range(3):
        step(optimizer, infos, t)
    state = through_files(optimizer.state_dict())
    others = twins(name, infos)
    for t in range(3, 6):
        step(optimizer, infos, t)

    resumed = build(name, others, lr=0.01, weight_decay=0.05)
    resumed.load_state_dict(state)
    for t in range(3, 6):
        step(resumed, others, t)
    assert all(torch.equal(a, b) for a, b in zip(values(infos), values(others), strict=True))
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
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01)
    for t in range(3):
        step(optimizer, infos, t)
    others = twins(name, infos)
    fresh = build(name, others, lr=0.01)
    assert not same(optimizer.state_dict(), fresh.state_dict())
    for t in range(3, 8):  # one step along signs may be the same by chance
        step(optimizer, infos, t)
        step(fresh, others, t)
    assert not any(torch.equal(a, b) for a, b in zip(values(infos), values(others), strict=True))


@every_optimizer
def test_the_state_shares_no_memory_between_its_tensors(name):
    infos = parameters(name)
    optimizer = build(name, infos)
    step(optimizer, infos, 0)
    tensors, _ = flatten(optimizer.state_dict())
    addresses = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    addresses += [tensor.data_ptr() for tensor in everything(infos).values()]
    assert len(set(addresses)) == len(addresses)


@every_optimizer
def test_loading_a_state_takes_the_saved_rates(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01)
    schedule = LambdaLR(optimizer, lambda t: 0.5**t)
    step(optimizer, infos, 0)
    schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    resumed = build(name, parameters(name), lr=0.01)
    resumed.load_state_dict(through_files(optimizer.state_dict()))
    assert [group["lr"] for group in resumed.param_groups] == rates


@with_gradients
def test_a_parameter_without_a_gradient_is_left_alone(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before = values(infos)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, values(infos), strict=True))
    few = alone(name, infos)
    for info in few:
        info.param.grad = torch.ones_like(info.param)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, values(infos), strict=True)]
    assert moved == [info in few for info in infos]
    resumed = build(name, copy.deepcopy(infos), lr=0.01)
    resumed.load_state_dict(through_files(optimizer.state_dict()))


@every_optimizer
def test_a_parameter_that_was_frozen_since_is_left_alone(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before, few = values(infos), alone(name, infos)
    for info in infos:
        info.param.requires_grad_(info in few)
    step(optimizer, infos, 0)
    moved = [not torch.equal(a, b) for a, b in zip(before, values(infos), strict=True)]
    assert moved == [info in few for info in infos]


@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS.names() if "averaged" not in OPTIMIZERS.declared(n).provides]
)
def test_weight_decay_shrinks_by_one_minus_rate_times_decay_whatever_the_gradients_were(name):
    """Decoupled: with zero gradients n steps multiply a decayed parameter by (1 - lr wd)^n, nothing else."""
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before = dict(zip((id(i.param) for i in infos), values(infos), strict=True))
    for _ in range(3):
        move(optimizer, flat(infos))
    decayed = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            factor = (1 - group["lr"] * 0.1) ** 3
            shrunk = torch.allclose(param, before[id(param)] * factor, rtol=1e-6, atol=0)
            assert shrunk or torch.equal(param, before[id(param)])
            decayed += shrunk
    names = {info.name for info in infos if not torch.equal(info.param, before[id(info.param)])}
    assert {"a.A", "a.B", "a.magnitude", "head.weight"} & {info.name for info in infos} <= names
    assert decayed >= len(infos) - 2


@every_optimizer
def test_the_decay_of_a_step_does_not_depend_on_its_gradient(name):
    """Decay multiplies by 1 - lr wd before the update or after it; nothing else of it is in the step."""
    plain, decayed = parameters(name), parameters(name)
    pair = [(build(name, plain, lr=0.01), plain), (build(name, decayed, lr=0.01, weight_decay=0.1), decayed)]
    start = values(plain)
    for optimizer, infos in pair:
        step(optimizer, infos, 2)
    rates = {id(p): group["lr"] for group in pair[1][0].param_groups for p in group["params"]}
    for info, other, old in zip(plain, decayed, start, strict=True):
        shrinking = rates[id(other.param)] * 0.1
        if info.site:
            either = [info.param.data - shrinking * old, info.param.data * (1 - shrinking)]
            assert any(torch.allclose(other.param.data, e, rtol=1e-6, atol=5e-7) for e in either), info.name


@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS.names() if "per_parameter" in OPTIMIZERS.declared(n).provides]
)
def test_one_optimizer_a_parameter_does_what_one_for_all_does(name):
    """Over parameters of the base model, and over an adapter's where the optimizer is made for those."""
    adapters = "low_rank" in OPTIMIZERS.declared(name).requires
    infos, others = ([i for i in parameters(name) if adapters or not i.site] for _ in range(2))
    together = build(name, infos, lr=0.01, weight_decay=0.1)
    apart = [build(name, [info], lr=0.01, weight_decay=0.1) for info in others]
    for t in range(3):
        step(together, infos, t)
        noisy(others, t)().backward()
        for optimizer in apart:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert all(torch.equal(a, b) for a, b in zip(values(infos), values(others), strict=True))


@with_gradients
def test_a_step_without_numbers_makes_the_state_of_a_real_one(name):
    """On the meta device, where the memory a run will take is counted before it starts."""
    sizes = []
    for device in ("cpu", "meta"):
        infos = parameters(name, device=device)
        optimizer = build(name, infos)
        for info in infos:
            info.param.grad = torch.ones_like(info.param)
        optimizer.step()
        held = [t for state in optimizer.state.values() for t in flatten(dict(state))[0].values() if t.ndim]
        assert {t.device.type for t in held} <= {device}
        sizes.append(sorted((t.shape, str(t.dtype)) for t in held))
    assert sizes[0] == sizes[1]


@with_closure
def test_the_closure_runs_without_gradients_and_its_first_loss_is_returned(name):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01)
    losses = []

    def closure():
        assert not torch.is_grad_enabled()
        losses.append(noisy(infos, 0)())
        return losses[-1]

    found = optimizer.step(closure)
    assert found.shape == () and found == losses[0]
    assert len(losses) >= 2 and losses[0] != losses[1]
    assert all(info.param.grad is None for info in infos)


@with_closure
@pytest.mark.parametrize("bad_call", [0, 1])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_reported(name, bad_call, number):
    infos = parameters(name)
    optimizer = build(name, infos, lr=0.01, weight_decay=0.1)
    before, calls = values(infos), []

    def closure():
        calls.append(None)
        return torch.tensor(number) if len(calls) - 1 == bad_call else noisy(infos, 0)()

    assert not math.isfinite(optimizer.step(closure))
    assert all(torch.equal(a, b) for a, b in zip(before, values(infos), strict=True))


@every_optimizer
def test_a_config_refuses_what_cannot_be(name):
    config = OPTIMIZERS.declared(name).config
    for wrong in ({"lr": 0.0}, {"lr": -1e-3}, {"weight_decay": -0.1}, {"learning_rate": 0.1}):
        with pytest.raises(ValueError):
            config(method=name, **wrong)


@with_gradients
def test_state_is_counted_on_one_tensor_of_a_kind_as_a_step_on_all_keeps_it(name):
    recipe = load_recipe(f"smoke/{name}", ["model.name=x/y"]).recipe

    def twice(device):
        again = [
            replace(info, name=f"{info.name}2", site=f"{info.site}2" if info.site else "")
            for info in parameters(name, seed=1, device=device)
        ]
        return [*parameters(name, device=device), *again]

    infos = twice("cpu")
    optimizer = build_optimizer(recipe, infos)
    for info in infos:
        info.param.grad = torch.ones_like(info.param)
    optimizer.step()
    assert optimizer_bytes(recipe, twice("meta")) == state_bytes(optimizer)


ALONE = [name for name in OPTIMIZERS.names() if "per_parameter" in OPTIMIZERS.declared(name).provides]


@each("name", ALONE)
def test_a_step_block_by_block_with_the_state_on_a_disk_is_the_step_of_all(
    name, tmp_path_factory, monkeypatch
):
    """And so is one after a checkpoint of either, loaded by the other."""
    monkeypatch.setattr(paged_state, "SMALL", 1)
    whole = parameters(name)
    paged = [replace(info, block=info.site) for info in twins(name, whole)]
    file = PageFile(tmp_path_factory.mktemp("pages"))
    first, second = build(name, whole, lr=1e-2), PagedState(build(name, paged, lr=1e-2), paged, file)
    for t in range(3):
        step(first, whole, t)
        step(second, paged, t)
        assert all(map(torch.equal, values(whole), values(paged))), t
    assert same(first.state_dict(), second.state_dict())
    inside = [laid.data_ptr() for _, laid in second._slots.values()]
    big = [t for i in paged for _, t in second._tensors(second.state.get(i.param, {}))]
    assert big or name == "sgd"
    assert all(tensor.data_ptr() in inside for tensor in big)
    saved = through_files(first.state_dict()), through_files(second.state_dict())
    second.load_state_dict(saved[0])
    first.load_state_dict(saved[1])
    step(first, whole, 3)
    step(second, paged, 3)
    assert all(map(torch.equal, values(whole), values(paged)))
    assert all(info.param.grad is None for info in paged)
    second.close()
    file.close()
