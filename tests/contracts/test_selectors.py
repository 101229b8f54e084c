"""What every selection of what trains promises, whatever its name."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.registry.axes import OPTIMIZERS, SCHEDULES, SELECTORS
from lrft.registry.errors import RecipeError
from lrft.training import schedule, updates
from lrft.training.flatten import flatten, unflatten

LAYERS, EVERY, TOTAL = 4, 3, 24
SMALL = {
    "share": 0.6,
    "budget_rank": 1,
    "filter_rank": 2,
}  # settings, where there are such, that leave matrices of 8 x 8 a choice
every_selector = pytest.mark.parametrize("name", SELECTORS.names())
updating = pytest.mark.parametrize(
    ("dtype", "update"), [(torch.float32, "in_place"), (torch.bfloat16, "master")]
)


class Tiny(nn.Module):
    """Embedding, four layers and a head, with a transformer's names."""

    def __init__(self, layers=LAYERS):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, ids):
        h = self.embed_tokens(ids)
        for layer in self.layers:
            h = h + torch.tanh(layer["up"](layer["norm"](h)))
        return self.lm_head(self.norm(h))


def infos_of(model):
    found = []
    for name, parameter in model.named_parameters():
        role = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}.get(name)
        role = role or ("matrix" if parameter.ndim == 2 else "vector")
        block = ".".join(name.split(".")[:2]) if name.startswith("layers.") else ""
        found.append(ParamInfo(name, parameter, role, block=block))
    return found


def make(name, seed=0, dtype=torch.float32, update="in_place", layers=LAYERS, per_layer=False, **settings):
    torch.manual_seed(1)
    model = Tiny(layers).to(dtype)
    infos = infos_of(model)
    config = OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.01, weight_decay=0.1)
    optimizer = updates.build(
        lambda part: OPTIMIZERS.get("adamw").build(part, config),
        infos,
        update=update,
        per_layer=per_layer,
        seed=seed,
    )
    rates = schedule.build(optimizer, SCHEDULES.settings("constant"), TOTAL)
    run = Run(model, infos, optimizer, rates, TOTAL, seed=seed)
    if name is not None:
        config = SELECTORS.declared(name).config
        small = {key: value for key, value in SMALL.items() if key in config.model_fields}
        run.callbacks = [SELECTORS.get(name)(config(method=name, **{"every": EVERY, **small, **settings}))]
    return run


def step(run, summed=False):
    """One step in the loop's order of events; `summed` as a sum over processes leaves the gradients."""

    def closure():
        ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(run.step))
        logits = run.model(ids[:, :-1]).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach()

    run.metrics = {}
    run.seed_step()
    run.closure = closure
    run.fire("before_step")
    trained = [info.name for info in run.parameters if info.param.requires_grad]
    closure()
    if summed:
        for info in run.parameters:
            info.param.grad = torch.zeros_like(info.param) if info.param.grad is None else info.param.grad
    run.fire("after_backward")
    run.record(selected=entries(run))
    run.optimizer.step()
    run.step += 1
    run.schedule.step()
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)
    return trained


def entries(run):
    """Which numbers of the layers' matrices have a gradient: some of each, or all of some."""
    matrices = [info for info in run.parameters if info.block and info.role == "matrix"]
    return tuple(
        (info.name, bytes(info.param.grad.ne(0).flatten().tolist()))
        for info in matrices
        if info.param.grad is not None
    )


def values(run):
    return {info.name: info.param.detach().clone() for info in run.parameters}


def state_numbers(run):
    return sum(
        t.numel() for state in run.optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )


@every_selector
@updating
def test_what_does_not_train_keeps_its_values_to_the_last_bit_and_has_no_state(name, dtype, update):
    run = make(name, dtype=dtype, update=update)
    run.fire("start")
    for _ in range(TOTAL):
        before = values(run)
        trained = step(run, summed=run.step % 2 == 0)
        assert 0 < len(trained) < len(before)
        moved = {key for key, value in values(run).items() if not torch.equal(value, before[key])}
        assert moved <= set(trained)
        assert dtype != torch.float32 or moved == set(trained)
        with_state = {info.name for info in run.parameters if info.param in run.optimizer.state}
        assert with_state == set(trained)


@every_selector
def test_the_state_is_that_of_what_trains_and_does_not_grow(name):
    """Two moments and a count of steps for each tensor."""
    run = make(name)
    run.fire("start")
    sizes = {info.name: 2 * info.param.numel() + 1 for info in run.parameters}
    for _ in range(TOTAL):
        trained = step(run)
        assert state_numbers(run) == sum(sizes[key] for key in trained)


@every_selector
def test_what_trains_changes_every_so_many_steps_and_at_no_other_time(name):
    run = make(name)
    run.fire("start")
    trained = []
    for _ in range(TOTAL):
        step(run)
        trained.append(run.metrics["selected"])
    for begin, end in pairwise([0, *range(EVERY - SELECTORS.get(name).early, TOTAL, EVERY), TOTAL]):
        assert len(set(trained[begin:end])) == 1
    assert len(set(trained)) > 1


@every_selector
def test_between_two_steps_everything_counts_as_trained(name):
    """So that a checkpoint holds the whole, whichever part trained last."""
    run = make(name)
    run.fire("start")
    for _ in range(5):
        assert all(info.param.requires_grad for info in run.parameters)
        step(run)
    assert all(info.param.requires_grad for info in run.parameters)


@every_selector
@updating
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(name, dtype, update, cut):
    def begin():
        run = make(name, seed=4, dtype=dtype, update=update)
        run.fire("start")
        return run

    whole, first = begin(), begin()
    for _ in range(12):
        step(whole)
    for _ in range(cut):
        step(first)
    parts = {"model": dict(first.model.state_dict()), "optimizer": first.optimizer.state_dict()}
    parts |= {"schedule": first.schedule.state_dict(), "callback": first.callbacks[0].state_dict()}
    tensors, plain = flatten(parts)
    stored = save({key: tensor.contiguous().clone() for key, tensor in tensors.items()})
    kept = unflatten(load(stored), json.loads(json.dumps(plain)))

    second = make(name, seed=4, dtype=dtype, update=update)
    second.model.load_state_dict(kept["model"])
    second.optimizer.load_state_dict(kept["optimizer"])
    second.callbacks[0].load_state_dict(kept["callback"])
    second.schedule.load_state_dict(kept["schedule"])
    second.step = cut
    second.fire("start")
    for _ in range(12 - cut):
        step(second)
    assert all(
        torch.equal(a, b) for a, b in zip(values(whole).values(), values(second).values(), strict=True)
    )


@every_selector
def test_updates_in_the_backward_pass_reach_what_trains_alone(name):
    run = make(name, per_layer=True)
    run.fire("start")
    for _ in range(7):
        before = values(run)
        trained = step(run)
        assert {k for k, v in values(run).items() if not torch.equal(v, before[k])} == set(trained)


@every_selector
def test_a_model_without_layers_that_train_is_refused(name):
    run = make(name)
    run.parameters = [info for info in run.parameters if not info.block]
    with pytest.raises(RecipeError, match=r"trainable\.weights: .*write full"):
        run.fire("start")


@every_selector
def test_an_optimizer_without_gradients_is_refused(name):
    run = make(name)
    run.optimizer.calls_closure = True
    with pytest.raises(RecipeError, match=r"select: .*computes none"):
        run.fire("start")


@every_selector
def test_a_run_that_ends_before_anything_else_is_selected_is_refused(name):
    config = SELECTORS.declared(name).config(method=name, every=EVERY)
    last = EVERY - SELECTORS.get(name).early  # the steps of the first part
    with pytest.raises(RecipeError, match=rf"select\.every: {EVERY} steps .* use at most {last - 1}"):
        config.check_length(last)
    config.check_length(last + 1)
