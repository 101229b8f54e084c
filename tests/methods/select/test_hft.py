"""HFT's own statements, on the tensors of a Llama."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select.hft import HFT, categories
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.training import schedule

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
FEED_FORWARD = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
DEPTH = 8


def make(seed=0, depth=DEPTH, bias=False, **settings):
    shapes = {"model.embed_tokens.weight": (9, 2), "model.norm.weight": (2,)}
    for index in range(depth):
        for name in (*ATTENTION, *FEED_FORWARD, *NORMS):
            shapes[f"model.layers.{index}.{name}.weight"] = (2,) if name in NORMS else (2, 2)
            if bias and name in ATTENTION:
                shapes[f"model.layers.{index}.{name}.bias"] = (2,)
    infos = [
        ParamInfo(
            name,
            nn.Parameter(torch.ones(shape)),
            "embedding" if "embed" in name else "matrix" if len(shape) == 2 else "vector",
            block=".".join(name.split(".")[:3]) if "layers" in name else "",
        )
        for name, shape in shapes.items()
    ]
    optimizer = OPTIMIZERS.get("adamw").build(infos, OPTIMIZERS.declared("adamw").config(lr=0.1))
    run = Run(
        nn.Module(), infos, optimizer, schedule.build(optimizer, SCHEDULES.settings("constant"), 9), 9, seed
    )
    run.callbacks = [HFT(HFT.Config(method="hft", **settings))]
    run.fire("start")
    return run


def step(run):
    """One step along gradients of ones; the names of what trained."""
    run.fire("before_step")
    trained = {info.name.removesuffix(".weight") for info in run.parameters if info.param.requires_grad}
    for info in run.parameters:
        info.param.grad = torch.ones_like(info.param)
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    return trained


def of(trained, index, names):
    return {name for name in names if f"model.layers.{index}.{name}" in trained}


@pytest.mark.parametrize("seed", range(5))
def test_two_of_four_of_one_and_a_half_of_three_and_half_of_the_norms(seed):
    trained = step(make(seed))
    assert all(len(of(trained, index, ATTENTION)) == 2 for index in range(DEPTH))
    assert all(len(of(trained, index, NORMS)) == 1 for index in range(DEPTH))
    many = Counter(len(of(trained, index, FEED_FORWARD)) for index in range(DEPTH))
    assert many == {1: DEPTH // 2, 2: DEPTH // 2}
    assert {"model.embed_tokens", "model.norm"} <= trained


def test_tensors_of_experts_and_their_router_are_matrices_and_no_norms():
    shapes = {"mlp.gate": (4, 2), "mlp.experts.gate_up_proj": (4, 6, 2), "mlp.experts.down_proj": (4, 2, 3)}
    role = {1: "vector", 2: "matrix", 3: "matrices"}
    infos = [
        ParamInfo(f"layers.0.{name}", nn.Parameter(torch.ones(shape)), role[len(shape)], block="layers.0")
        for name, shape in {**shapes, **dict.fromkeys((f"{n}.weight" for n in NORMS), (2,))}.items()
    ]
    found = [[[units.shape for (units,) in layer] for layer in one] for one in categories([infos])]
    assert found == [[[(4, 2)]], [[(4, 6, 2), (4, 2, 3)]], [[(2,), (2,)]]]


@pytest.mark.parametrize(("depth", "matrices"), [(1, 2), (3, 5), (5, 8)])
def test_an_odd_number_of_layers_rounds_up(depth, matrices):
    trained = step(make(depth=depth))
    assert sum(len(of(trained, index, FEED_FORWARD)) for index in range(depth)) == matrices


def test_every_matrix_is_drawn_as_often_as_any_other():
    run = make()
    hft, names = run.callbacks[0], {info.param: info.name for info in run.parameters}
    drawn = Counter(names[p] for stage in range(400) for p in hft.drawn(0, stage))
    assert len(drawn) == DEPTH * 9
    assert all(abs(count - 200) < 50 for count in drawn.values())  # five deviations


def test_a_bias_goes_with_its_matrix():
    trained = step(make(bias=True))
    for index in range(DEPTH):
        names = [f"model.layers.{index}.{name}" for name in ATTENTION]
        assert [name in trained for name in names] == [f"{name}.bias" in trained for name in names]


def test_what_is_frozen_keeps_its_values_and_stages_draw_new_halves():
    run = make(every=3)
    sets = []
    for _ in range(9):
        before = {info.name: info.param.detach().clone() for info in run.parameters}
        trained = step(run)
        moved = {i.name for i in run.parameters if not torch.equal(i.param, before[i.name])}
        assert {name.removesuffix(".weight") for name in moved} == trained
        sets.append(frozenset(trained))
    assert sets[0] == sets[1] == sets[2] != sets[3] == sets[5] != sets[6] and sets[6] != sets[0]


def test_a_run_that_follows_draws_the_half_of_its_stage_and_says_which_it_was():
    one, two = make(seed=3, every=2), make(seed=3, stage=1)
    halves = [step(one) for _ in range(3)]
    assert step(two) == halves[2] != halves[0] and step(two) == halves[2]
    assert one.summary["half_fine_tuning"] == two.summary["half_fine_tuning"]
    assert two.summary["half_fine_tuning"]["seed"] == 3 and two.summary["half_fine_tuning"]["stage"] == 1
    assert step(make(seed=4, stage=1)) != halves[2]


def test_a_stage_begins_with_new_moments_and_more_than_half_trains_with_the_embeddings():
    run = make(every=3)
    for _ in range(4):
        step(run)
    states = [run.optimizer.state[i.param] for i in run.parameters if i.param in run.optimizer.state]
    assert {float(state["step"]) for state in states} == {1.0}
    assert 0.5 < run.summary["half_fine_tuning"]["share"] < 0.6
