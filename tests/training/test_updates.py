"""Updates in place, through float32, and in the backward pass."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lrft.api.training.train import train
from lrft.core.optimizer import Optimizer
from lrft.core.params import ParamInfo
from lrft.ops.rounding import stochastic_round
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, SELECTORS
from lrft.training.updates import Float32, PerLayer, build, state_bytes
from tests.same_state import same
from tests.training.unbroken import SIX_STEPS, goes_on_unbroken

ADAMW = partial(
    OPTIMIZERS.get("adamw").build, config=OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.01)
)


def weights(dtype, shapes=((12, 8), (8,), (1,))):
    generator = torch.Generator().manual_seed(0)
    return [
        ParamInfo(f"w{i}", nn.Parameter(torch.randn(shape, generator=generator).to(dtype)), "matrix")
        for i, shape in enumerate(shapes)
    ]


def walk(optimizer, infos, steps, begin=0, size=1.0):
    for t in range(begin, begin + steps):
        for i, info in enumerate(infos):
            generator = torch.Generator().manual_seed(100 * t + i)
            info.param.grad = (size * torch.randn(info.param.shape, generator=generator)).to(info.param.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_a_float32_weight_is_updated_in_place_whatever_is_asked():
    infos = weights(torch.float32)
    assert type(build(ADAMW, infos, update="master", per_layer=False, seed=0)) is OPTIMIZERS.get("adamw")


def test_masters_follow_float32_training_and_the_weights_are_their_rounding():
    coarse, fine = weights(torch.bfloat16), weights(torch.bfloat16)
    exact = [ParamInfo(i.name, nn.Parameter(i.param.detach().float()), i.role) for i in fine]
    optimizer = build(ADAMW, coarse, update="master", per_layer=False, seed=0)
    reference = ADAMW(exact)
    for t in range(20):
        for i, (a, b) in enumerate(zip(coarse, exact, strict=True)):
            generator = torch.Generator().manual_seed(100 * t + i)
            a.param.grad = torch.randn(a.param.shape, generator=generator).to(torch.bfloat16)
            b.param.grad = a.param.grad.float()
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        assert all(info.param.grad is None for info in coarse)
    for a, b in zip(coarse, exact, strict=True):
        assert torch.equal(a.param, b.param.to(torch.bfloat16))


def test_updates_too_small_for_bfloat16_add_up_in_masters_and_on_average_in_stochastic_rounding():
    results = {}
    for update in ("in_place", "master", "stochastic"):
        info = ParamInfo("w", nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)), "matrix")
        sgd = partial(
            OPTIMIZERS.get("sgd").build,
            config=OPTIMIZERS.declared("sgd").config(method="sgd", lr=1e-4, momentum=0.0),
        )
        optimizer = build(sgd, [info], update=update, per_layer=False, seed=3)
        for _ in range(100):  # 100 steps of 1e-4, each a fortieth of a bfloat16 step below 1
            info.param.grad = torch.ones_like(info.param)
            optimizer.step()
        results[update] = float(info.param.float().mean())
    assert results["in_place"] == 1.0
    assert results["master"] == pytest.approx(0.99, abs=2e-3)
    assert results["stochastic"] == pytest.approx(0.99, abs=3e-4)


def test_stochastic_rounding_is_unbiased_leaves_bfloat16_numbers_and_infinities_alone():
    generator = torch.Generator().manual_seed(1)
    values = torch.full((200_000,), 1.001)
    assert float(stochastic_round(values, generator).float().mean()) == pytest.approx(1.001, abs=1e-4)
    kept = torch.tensor([1.0, -2.5, 0.0, float("inf"), -float("inf")])
    assert torch.equal(stochastic_round(kept, generator).float(), kept)
    assert stochastic_round(torch.tensor([float("nan")]), generator).isnan().all()


@pytest.mark.parametrize("update", ["master", "stochastic"])
def test_the_state_is_all_it_takes_to_go_on(update):
    one = weights(torch.bfloat16)
    optimizer = build(ADAMW, one, update=update, per_layer=False, seed=5)
    walk(optimizer, one, 3)
    two = [ParamInfo(i.name, nn.Parameter(i.param.detach().clone()), i.role) for i in one]
    resumed = build(ADAMW, two, update=update, per_layer=False, seed=5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, one, 3, begin=3)
    walk(resumed, two, 3, begin=3)
    assert all(torch.equal(a.param, b.param) for a, b in zip(one, two, strict=True))
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_a_reset_frees_the_master_and_the_next_one_starts_from_the_weight():
    infos = weights(torch.bfloat16)
    optimizer = Float32(ADAMW, infos, "master", 0)
    walk(optimizer, infos, 2)
    numbers = sum(info.param.numel() for info in infos)
    assert state_bytes(optimizer) == 12 * numbers  # m, v and the master
    optimizer.state.pop(infos[0].param)
    assert state_bytes(optimizer) == 12 * (numbers - infos[0].param.numel())
    assert all(param is not infos[0].param for param in optimizer.state)
    with torch.no_grad():
        infos[0].param.fill_(2.0)
    walk(optimizer, infos, 1)
    assert (infos[0].param.float() - 2).abs().max() < 0.05


def test_a_weight_without_a_gradient_has_no_master_and_does_not_move():
    infos = weights(torch.bfloat16)
    before = infos[1].param.detach().clone()
    optimizer = Float32(ADAMW, infos, "master", 0)
    infos[0].param.grad = torch.ones_like(infos[0].param)
    optimizer.step()
    assert torch.equal(infos[1].param, before)
    assert [param is infos[0].param for param in optimizer.state] == [True]


def quadratic(infos):
    return sum(((info.param.float() - 1) ** 2).sum() for info in infos)


@pytest.mark.parametrize("update", ["in_place", "master"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_updating_in_the_backward_pass_is_the_same_update_and_frees_every_gradient(name, update):
    make = partial(OPTIMIZERS.get(name).build, config=OPTIMIZERS.declared(name).config(method=name, lr=0.01))
    dtype = torch.float32 if update == "in_place" else torch.bfloat16
    together, apart = weights(dtype), weights(dtype)
    one = build(make, together, update=update, per_layer=False, seed=0)
    two = build(make, apart, update=update, per_layer=True, seed=0)
    assert isinstance(two, PerLayer)
    for _ in range(4):
        quadratic(together).backward()
        norm = torch.nn.utils.get_total_norm([info.param.grad.float() for info in together])
        one.step()
        one.zero_grad()
        quadratic(apart).backward()
        assert all(info.param.grad is None for info in apart)
        torch.testing.assert_close(two.take_norm(), norm)
        two.step()
        two.zero_grad()
    assert all(torch.equal(a.param, b.param) for a, b in zip(together, apart, strict=True))
    assert state_bytes(one) == state_bytes(two)


@pytest.mark.parametrize("update", ["master", "stochastic"])
@pytest.mark.parametrize("select", SELECTORS.names())
def test_of_what_a_selection_has_not_had_its_turn_yet_nothing_is_kept_and_a_run_goes_on(
    tiny, tmp_path, select, update
):
    given = [
        f"model.name={tiny()}",
        "model.dtype=bfloat16",
        f"trainable.update={update}",
        "trainable.weights=full",
    ]
    loaded = load_recipe(f"smoke/{select}", [*given, *SIX_STEPS, "eval.tasks=[]", "train.eval_every=null"])
    train(loaded, tmp_path / "whole")
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")


def test_a_schedule_moves_the_rates_inside_a_wrapper():
    from torch.optim.lr_scheduler import LambdaLR

    for per_layer in (False, True):
        infos = weights(torch.bfloat16)
        optimizer = build(ADAMW, infos, update="master", per_layer=per_layer, seed=0)
        schedule = LambdaLR(optimizer, lambda t: 0.0 if t else 1.0)
        walk(optimizer, infos, 1)
        schedule.step()
        before = [info.param.detach().clone() for info in infos]
        if per_layer:
            quadratic(infos).backward()
        else:
            walk(optimizer, infos, 1, begin=1)
        assert all(torch.equal(info.param, old) for info, old in zip(infos, before, strict=True))


def test_an_optimizer_that_computes_its_own_losses_is_refused():
    class ZerothOrder(Optimizer, torch.optim.SGD):
        calls_closure = True

    def make(infos):
        return ZerothOrder([info.param for info in infos], lr=0.1)

    with pytest.raises(ValueError, match="update: in_place"):
        build(make, weights(torch.bfloat16), update="master", per_layer=False, seed=0)


def test_bytes_are_counted_on_tensors_without_storage():
    with torch.device("meta"):
        infos = [ParamInfo("w", nn.Parameter(torch.empty(1000, 500)), "matrix")]
        optimizer = build(ADAMW, infos, update="in_place", per_layer=False, seed=0)
        infos[0].param.grad = torch.empty(1000, 500)
        optimizer.step()
    assert state_bytes(optimizer) == 8 * 500_000


@pytest.mark.parametrize(
    ("trainable", "told"),
    [("adapter", False), ("[norm.weight]", True), ("{weights: [norm.weight], update: master}", False)],
)
def test_base_weights_that_are_rounded_at_every_step_are_told_of(
    recipe_file, tmp_path, capsys, trainable, told
):
    """A norm near 1 that trains at 1e-4 in bfloat16 would stand still without a word."""
    small = [f"trainable={trainable}", "train.max_steps=1", "~train.eval_every", "schedule=constant"]
    train(load_recipe(recipe_file(), small), tmp_path / "run", resume=False)
    assert ("trainable.update: base weights train in bfloat16" in capsys.readouterr().err) == told
