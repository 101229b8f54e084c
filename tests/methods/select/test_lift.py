"""LIFT's own statements, and the sparse AdamW of the authors' code on the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lrft.api.training.train import train
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select.lift import LIFT, keep_only
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule, updates

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "lift.yaml"
SHAPES = {"layers.0.up": (12, 8), "layers.1.up": (12, 8), "layers.1.down": (8, 12)}


def lift(**settings):
    return LIFT(LIFT.Config(method="lift", **settings))


def make(optimizer="adamw", dtype=torch.float32, update="in_place", every=3, budget_rank=1, filter_rank=2):
    torch.manual_seed(0)
    shapes = {**SHAPES, "embed": (20, 8), "layers.0.norm": (8,)}
    roles = {"embed": "embedding", "layers.0.norm": "vector"}
    infos = [
        ParamInfo(
            n, nn.Parameter(torch.randn(s).to(dtype)), roles.get(n, "matrix"), block=n.rpartition(".")[0]
        )
        for n, s in shapes.items()
    ]
    config = OPTIMIZERS.declared(optimizer).config(method=optimizer, lr=0.01)
    built = updates.build(
        lambda part: OPTIMIZERS.get(optimizer).build(part, config),
        infos,
        update=update,
        per_layer=False,
        seed=0,
    )
    run = Run(nn.Module(), infos, built, schedule.build(built, SCHEDULES.settings("constant"), 99), 99)
    run.callbacks = [lift(every=every, budget_rank=budget_rank, filter_rank=filter_rank)]
    run.fire("start")
    return run


def step(run):
    """One step along gradients of noise; what they were before the selection."""
    run.fire("before_step")
    gradients = {}
    for index, info in enumerate(run.parameters):
        noise = torch.randn(info.param.shape, generator=torch.Generator().manual_seed(100 * run.step + index))
        info.param.grad = noise.to(info.param.dtype)
        gradients[info.name] = noise
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)
    return gradients


def mask(run, info):
    places = run.callbacks[0].places[info.name]
    return (
        torch.zeros(info.param.numel(), dtype=torch.bool).index_fill(0, places, True).view(info.param.shape)
    )


@pytest.mark.parametrize("weight", [torch.ones(12, 8), torch.eye(12)[:, :8], torch.randn(12, 8)])
@pytest.mark.parametrize(("budget", "count"), [(1, 20), (2, 40), (100, 96)])
def test_as_many_entries_as_a_lora_has_are_taken_ties_or_not(weight, budget, count):
    places = lift(budget_rank=budget, filter_rank=2).largest(weight)
    assert len(places) == len(set(places.tolist())) == count


def test_an_approximation_of_full_rank_leaves_the_largest_weights():
    torch.manual_seed(0)
    weight = torch.randn(12, 8)
    places = lift(budget_rank=1, filter_rank=8).largest(weight)
    assert set(places.tolist()) == set(weight.abs().flatten().topk(20).indices.tolist())


def test_the_rule_is_the_largest_after_rank_reduction():
    """A weight of rank 1 and one entry above all others, which the reduction does not see."""
    row, column = torch.arange(1.0, 41), torch.arange(1.0, 31)
    smooth = 10 * torch.outer(row, column) / 1200
    weight = smooth.clone()
    weight[0, 0] = 12.0
    places = lift(budget_rank=1, filter_rank=1).largest(weight)
    assert 0 not in places.tolist() and weight.abs().argmax() == 0
    assert len(set(places.tolist()) & set(smooth.flatten().topk(70).indices.tolist())) >= 65


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize(
    ("dtype", "update"),
    [(torch.float32, "in_place"), (torch.bfloat16, "master"), (torch.bfloat16, "stochastic")],
)
def test_what_is_not_selected_keeps_its_value_to_the_last_bit(optimizer, dtype, update):
    run = make(optimizer, dtype, update)
    for _ in range(10):
        before = {info.name: info.param.detach().clone() for info in run.parameters}
        step(run)
        for info in run.parameters:
            same = info.param == before[info.name]
            selected = mask(run, info) if info.role == "matrix" else torch.zeros_like(same)
            assert same[~selected].all()
            assert dtype != torch.float32 or not same[selected].any()


def test_it_is_adamw_on_vectors_of_the_selected_entries_as_in_the_authors_code():
    """Moments scattered to the whole and gathered with the new mask; the step count goes on."""
    run, (b1, b2), eps = make(), (0.9, 0.999), 1e-8
    whole = {i.name: (torch.zeros_like(i.param), torch.zeros_like(i.param)) for i in run.parameters}
    theirs = {info.name: info.param.detach().clone() for info in run.parameters}
    for t in range(1, 11):
        gradients = step(run)
        for info in run.parameters:
            if info.role != "matrix":
                continue
            chosen = mask(run, info)
            m, v = (moment[chosen] for moment in whole[info.name])
            g = gradients[info.name][chosen]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            theirs[info.name][chosen] -= 0.01 * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
            for moment, values in zip(whole[info.name], (m, v), strict=True):
                moment.zero_()[chosen] = values
            torch.testing.assert_close(info.param.detach(), theirs[info.name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("every", "steps"), [(1, list(range(8))), (3, [0, 2, 5]), (8, [0, 7])])
def test_entries_are_chosen_as_often_and_as_early_as_in_the_authors_code(every, steps):
    """There a choice follows every step t = 1, 2, ... with t + 1 a multiple of the interval."""
    run, seen = make(every=every), []
    selector = run.callbacks[0]
    selector.largest = lambda weight: seen.append(run.step) or torch.arange(20)
    for _ in range(8):
        step(run)
    assert sorted(set(seen)) == steps


def test_experts_in_one_tensor_are_refused():
    run = make()
    param = nn.Parameter(torch.ones(3, 4, 2))
    run.parameters.append(ParamInfo("layers.0.experts", param, "matrices", block="layers.0"))
    with pytest.raises(RecipeError, match=r"select: lift is of single matrices; write model\.experts: split"):
        run.fire("start")


def test_at_a_selection_entries_that_stay_keep_their_moments_and_others_have_none():
    run = make(every=2)
    step(run), step(run)
    before = {i.name: run.optimizer.state[i.param]["exp_avg"].clone() for i in run.parameters[:3]}
    old = {info.name: mask(run, info) for info in run.parameters[:3]}
    run.callbacks[0].largest = lambda weight: torch.arange(0, weight.numel(), 5)
    run.fire("before_step")
    for info in run.parameters[:3]:
        new, moment = mask(run, info), run.optimizer.state[info.param]["exp_avg"]
        assert torch.equal(moment[new & old[info.name]], before[info.name][new & old[info.name]])
        assert not moment[~new].any() and not moment[new & ~old[info.name]].any()


def test_every_entry_selected_is_plain_adamw():
    run = make(budget_rank=99)
    plain = [nn.Parameter(info.param.detach().clone()) for info in run.parameters[:3]]
    config = OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.01)
    adamw = OPTIMIZERS.get("adamw").build([ParamInfo("", p, "matrix") for p in plain], config)
    for _ in range(7):
        gradients = step(run)
        for param, name in zip(plain, SHAPES, strict=True):
            param.grad = gradients[name]
        adamw.step()
    assert all(torch.equal(a.param, b) for a, b in zip(run.parameters, plain, strict=False))


def test_a_checkpoint_holds_the_places_in_32_bits():
    run = make()
    step(run)
    state, other = run.callbacks[0].state_dict(), lift()
    assert {places.dtype for places in state.values()} == {torch.int32}
    other.load_state_dict(state)
    assert all(torch.equal(places, run.callbacks[0].places[name]) for name, places in other.places.items())


def test_keeping_places_works_whatever_the_layout():
    tensor = torch.arange(1.0, 13).view(3, 4).mT
    keep_only(tensor, torch.tensor([1, 11]))
    assert tensor[0, 1] == 5 and tensor[3, 2] == 12 and tensor.count_nonzero() == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.weight_decay=0.1"], r"optimizer\.weight_decay.* write 0"),
        (["optimizer.per_layer=true", "train.clip=null"], r"optimizer\.per_layer.* write false"),
        (["optimizer=muon"], "entries|entry"),
        (["select.every=4"], r"select\.every: 4 steps .* use at most 2"),
    ],
)
def test_what_would_move_other_entries_is_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(SMOKE, ["model.name=x/y", *overrides])


@pytest.mark.parametrize(
    "patterns", ["['*.down_proj.weight', 'norm.weight']", "[embed_tokens.weight, q_proj.weight]"]
)
def test_it_selects_in_what_patterns_name_also_beside_a_tied_embedding(on_tiny, tmp_path, patterns):
    small = [*on_tiny(SMOKE), f"trainable={patterns}", "data.train.limit=30", "data.eval.limit=4"]
    result = train(load_recipe(SMOKE, [*small, "train.device=cpu"]), tmp_path / "run", resume=False)
    assert result["step"] == 3


def test_patterns_without_a_matrix_are_refused(on_tiny, tmp_path):
    small = [
        *on_tiny(SMOKE),
        "trainable=['*.input_layernorm.weight']",
        "data.train.limit=30",
        "train.device=cpu",
    ]
    with pytest.raises(RecipeError, match=r"trainable\.weights: names no matrix .* write full"):
        train(load_recipe(SMOKE, small), tmp_path / "run", resume=False)
