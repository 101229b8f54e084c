"""LISA's own statements."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select.lisa import LISA
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule

LAYERS = 12  # more than ten, so that layer 10 must not stand before layer 2


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, ids):
        h = self.embed(ids)
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.head(h)


def make(seed=0, select=True, **settings):
    torch.manual_seed(0)
    model = Tiny()
    roles = {"embed.weight": "embedding", "head.weight": "head"}
    infos = [
        ParamInfo(
            n, p, roles.get(n, "matrix"), block=".".join(n.split(".")[:2]) if n.startswith("layers") else ""
        )
        for n, p in sorted(model.named_parameters())
    ]
    optimizer = OPTIMIZERS.get("adamw").build(
        infos, OPTIMIZERS.declared("adamw").config(lr=0.01, weight_decay=0.1)
    )
    rates = schedule.build(optimizer, SCHEDULES.settings("linear"), 60)
    run = Run(model, infos, optimizer, rates, 60, seed=seed)
    if select:
        run.callbacks = [LISA(LISA.Config(method="lisa", **settings))]
        run.fire("start")
    return run


def steps(run, count):
    """That many steps; the layers that moved in each, and what else did."""
    moved = []
    for _ in range(count):
        before = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
        run.metrics = {}
        run.fire("before_step")
        ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(run.step))
        nn.functional.cross_entropy(run.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        run.fire("after_backward")
        run.optimizer.step()
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
        run.optimizer.zero_grad(set_to_none=True)
        names = [n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])]
        layers = sorted({int(n.split(".")[1]) for n in names if n.startswith("layers")})
        moved.append((layers, {n for n in names if not n.startswith("layers")}))
    return moved


def test_exactly_the_drawn_layers_change_and_all_outside_always_does():
    run = make(active=2, every=5)
    for step, (layers, outside) in enumerate(steps(run, 20)):
        assert layers == run.callbacks[0].drawn(0, step)
        assert len(layers) == 2
        assert outside == {"embed.weight", "head.weight"}


def test_layers_are_drawn_alike_often_and_never_twice_at_once():
    run = make(active=3, every=1)
    draws = [tuple(run.callbacks[0].drawn(0, step)) for step in range(4000)]
    assert all(len(set(drawn)) == 3 for drawn in draws)
    counts = Counter(layer for drawn in draws for layer in drawn)
    assert all(abs(counts[layer] - 1000) < 120 for layer in range(LAYERS))  # more than four deviations


def test_every_layer_active_and_moments_kept_is_adamw():
    lisa, plain = make(active=LAYERS, every=3, moments="keep"), make(select=False)
    steps(lisa, 10)
    steps(plain, 10)
    for a, b in zip(lisa.parameters, plain.parameters, strict=True):
        assert torch.equal(a.param, b.param)


@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_at_a_draw_moments_outside_the_layers_start_anew_or_go_on(moments):
    run = make(active=2, every=4, moments=moments)
    steps(run, 5)
    counts = {info.name: run.optimizer.state[info.param]["step"] for info in run.parameters if not info.block}
    assert set(map(float, counts.values())) == {1.0 if moments == "reset" else 5.0}


def test_a_layer_frozen_again_forgets_its_moments_even_when_others_keep_theirs():
    run = make(active=2, every=4, moments="keep")
    steps(run, 4)
    first = run.callbacks[0].drawn(0, 0)
    later = next(step for step in range(4, 60, 4) if not set(run.callbacks[0].drawn(0, step)) & set(first))
    steps(run, later + 1 - 4)
    held = {int(i.name.split(".")[1]) for i in run.parameters if i.block and i.param in run.optimizer.state}
    assert held == set(run.callbacks[0].drawn(0, later))


def test_state_bytes_are_8_for_every_number_outside_and_in_the_active_layers():
    run = make(active=2, every=4)
    steps(run, 6)
    states = run.optimizer.state.values()
    held = sum(state[key].nbytes for state in states for key in ("exp_avg", "exp_avg_sq"))
    outside, layer = 7 * 4 * 2, 4 * 4 + 4
    assert held == 8 * (outside + 2 * layer)


def test_a_draw_is_told_and_depends_on_the_seed():
    run = make(active=2, every=4)
    steps(run, 5)
    assert run.metrics["active_layers"] == run.callbacks[0].drawn(0, 4)
    drawn = {tuple(run.callbacks[0].drawn(seed, 0)) for seed in range(20)}
    assert len(drawn) > 5


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(RecipeError, match=r"select\.active: 13 layers are more than train \(12\)"):
        make(active=13)


def test_published_defaults():
    config = LISA.Config(method="lisa")
    assert (config.active, config.every) == (2, 20)
