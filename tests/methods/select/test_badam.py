"""BAdam's own statements, and the authors' package step by step."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select.badam import BAdam
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule, updates

LR, DECAY = 0.01, 0.1


class Tiny(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)

    def forward(self, ids):
        h = self.embed_tokens(ids)
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.lm_head(self.norm(h))


def backward(model, step):
    ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten()).backward()


def make(layers=4, dtype=torch.float32, update="in_place", seed=0, select=True, **settings):
    torch.manual_seed(0)
    model = Tiny(layers).to(dtype)
    roles = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}
    infos = [
        ParamInfo(
            n,
            p,
            roles.get(n) or ("matrix" if p.ndim == 2 else "vector"),
            block=".".join(n.split(".")[:2]) if n.startswith("layers") else "",
        )
        for n, p in model.named_parameters()
    ]
    config = OPTIMIZERS.declared("adamw").config(lr=LR, weight_decay=DECAY)
    optimizer = updates.build(
        lambda part: OPTIMIZERS.get("adamw").build(part, config),
        infos,
        update=update,
        per_layer=False,
        seed=0,
    )
    run = Run(
        model,
        infos,
        optimizer,
        schedule.build(optimizer, SCHEDULES.settings("constant"), 60),
        60,
        seed=seed,
    )
    if select:
        run.callbacks = [BAdam(BAdam.Config(method="badam", **settings))]
        run.fire("start")
    return run


def steps(run, count):
    """That many steps; the names of what trained in each."""
    trained = []
    for _ in range(count):
        run.metrics = {}
        run.fire("before_step")
        trained.append({info.name for info in run.parameters if info.param.requires_grad})
        backward(run.model, run.step)
        run.fire("after_backward")
        run.optimizer.step()
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
        run.optimizer.zero_grad(set_to_none=True)
    return trained


def layer(index):
    return {f"layers.{index}.weight", f"layers.{index}.bias"}


@pytest.mark.parametrize(("dtype", "update"), [(torch.float32, "in_place"), (torch.bfloat16, "master")])
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("ends", [False, True])
def test_every_step_is_that_of_the_authors_package(order, dtype, update, ends, monkeypatch):
    """Weights equal bit for bit through three switches, in float32, and in bfloat16 with the paper's float32 copy."""
    badam = pytest.importorskip("badam")
    monkeypatch.setattr("badam.block_optim.gc.collect", lambda: 0)  # seconds a switch
    run = make(dtype=dtype, update=update, every=5, order=order, embeddings=ends, head=ends)
    torch.manual_seed(0)
    model = Tiny().to(dtype)
    inner = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, foreach=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of float32 weights
        theirs = badam.BlockOptimizer(
            inner,
            list(model.named_parameters()),
            switch_block_every=5,
            switch_mode=order,
            include_embedding=ends,
            include_lm_head=ends,
            verbose=0,
        )
    theirs.global_step = -1  # its first block would train one step less than the others
    for step in range(18):
        steps(run, 1)
        backward(model, step)
        theirs.step()
        theirs.zero_grad()
        for (name, ours), parameter in zip(run.model.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, parameter), f"{name} after step {step + 1}"


def test_one_block_is_adamw_until_the_first_switch():
    run, plain = make(layers=1, every=8), make(layers=1, select=False)
    for info in plain.parameters:
        info.param.requires_grad_(bool(info.block))
    steps(run, 8)
    for step in range(8):
        backward(plain.model, step)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    for a, b in zip(run.parameters, plain.parameters, strict=True):
        assert torch.equal(a.param, b.param)


def test_every_block_gets_the_same_number_of_steps():
    assert steps(make(every=3), 15) == [layer(i) for i in (3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3, 3, 3)]
    assert steps(make(every=2, order="ascending"), 6) == [layer(i) for i in (0, 0, 1, 1, 2, 2)]


def test_at_a_switch_all_state_goes():
    run = make(every=3, always=["norm.weight"])
    steps(run, 4)
    held = {
        info.name: float(run.optimizer.state[info.param]["step"])
        for info in run.parameters
        if info.param in run.optimizer.state
    }
    assert held == dict.fromkeys({*layer(2), "norm.weight"}, 1.0)


def test_random_order_visits_every_block_once_a_round_in_an_order_of_its_own():
    run = make(every=1, order="random")
    method = run.callbacks[0]
    rounds = [[method.active_block(0, 4 * turn + place) for place in range(4)] for turn in range(30)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 10
    assert [method.active_block(1, step) for step in range(40)] != [
        method.active_block(0, step) for step in range(40)
    ]


def test_embeddings_come_before_the_layers_and_the_head_with_the_rest_after():
    trained = steps(make(every=1, order="ascending", embeddings=True, head=True), 6)
    assert trained[0] == {"embed_tokens.weight"}
    assert trained[1:5] == [layer(i) for i in range(4)]
    assert trained[5] == {"norm.weight", "norm.bias", "lm_head.weight"}


def test_what_always_trains_is_named_by_patterns():
    trained = steps(make(every=1, always=["norm.*", "lm_head.weight"]), 4)
    assert trained == [layer(i) | {"norm.weight", "norm.bias", "lm_head.weight"} for i in (3, 2, 1, 0)]
    with pytest.raises(RecipeError, match=r"select\.always: pattern 'nrom' matches no parameter"):
        make(always=["nrom"])


def test_a_block_that_is_asked_for_must_train():
    run = make()
    run.parameters = [info for info in run.parameters if info.role != "embedding"]
    run.callbacks = [BAdam(BAdam.Config(method="badam", embeddings=True))]
    with pytest.raises(RecipeError, match=r"select\.embeddings: .*write false"):
        run.fire("start")
