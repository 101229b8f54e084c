"""GreenTrainer: the choice against every subset, costs against counted products, importance by hand."""

from __future__ import annotations

import copy
import random
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select._backward_costs import Costs, choose, measure_costs
from lrft.methods.select.greentrainer import GreenTrainer, importances
from lrft.ops.loss import Head
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.registry.errors import NumericalError, RecipeError
from lrft.training import schedule

TOKENS = 5


class Products(TorchDispatchMode):
    """Counts the operations of every product of matrices."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.operations += 2 * args[0].numel() * args[1].shape[1]
        return y


class Stack(nn.Module):
    """Linear layers between an embedding and a head, which may be one tensor."""

    def __init__(self, tied=False, frozen=()):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)])
        self.dropout = nn.Dropout(0.5)
        self.lm_head = nn.Linear(4, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight
        for index in frozen:
            self.layers[index].requires_grad_(False)

    @property
    def head(self):
        return Head(self.lm_head)

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = self.dropout(torch.tanh(layer(hidden)))
        return self.lm_head(hidden)


def make(tied=False, frozen=(), **settings):
    torch.manual_seed(0)
    model = Stack(tied, frozen)
    roles = {"embed.weight": "embedding", "lm_head.weight": "head"}
    infos = [
        ParamInfo(n, p, roles.get(n, "matrix"), block="layers.0" if "layers" in n else "")
        for n, p in model.named_parameters()
        if p.requires_grad
    ]
    optimizer = OPTIMIZERS.get("adamw").build(infos, OPTIMIZERS.declared("adamw").config(lr=0.01))
    rates = schedule.build(optimizer, SCHEDULES.settings("constant"), 9)
    run = Run(model, infos, optimizer, rates, 9, clip=1.0)

    def closure():
        run.seed_draws(0)
        ids = torch.randint(11, (TOKENS + 1,), generator=torch.Generator().manual_seed(run.step))
        loss = nn.functional.cross_entropy(model(ids[:-1]), ids[1:])
        loss.backward()
        return loss.detach()

    run.closure = closure
    run.callbacks = [GreenTrainer(GreenTrainer.Config(method="greentrainer", **settings))]
    run.fire("start")
    return run


def best_of_all(costs, worth, limit):
    subsets = product([False, True], repeat=len(worth))
    return max(sum(w for w, c in zip(worth, s, strict=True) if c) for s in subsets if costs.of(s) <= limit)


def test_the_authors_example():
    costs = Costs([0, 2, 1, 4, 0], [5, 1, 7, 3, 1], 0)
    assert costs.backward == 24
    chosen = choose(costs, [1, 3, 10, 5, 3], 0.6 * costs.backward)
    assert chosen == [False, True, True, False, False]
    assert costs.of(chosen) == 11


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_subsets(seed):
    draw = random.Random(seed)
    many = draw.randint(3, 9)
    passing, weight = ([draw.randint(0, 20) for _ in range(many)] for _ in range(2))
    costs, worth = Costs(passing, weight, 0), [draw.uniform(-0.3, 1) for _ in range(many)]
    limit = draw.uniform(0.1, 1) * costs.backward
    chosen = choose(costs, worth, limit)
    found = sum(w for w, c in zip(worth, chosen, strict=True) if c)
    assert costs.of(chosen) <= limit
    assert found == pytest.approx(best_of_all(costs, worth, limit))


def test_few_units_are_worse_and_never_over_the_budget():
    draw = random.Random(7)
    costs = Costs(*([draw.random() for _ in range(60)] for _ in range(2)), 0)
    worth = [draw.random() for _ in range(60)]
    found = []
    for units in (3, 30, 1000):
        chosen = choose(costs, worth, 0.3 * costs.backward, units)
        assert costs.of(chosen) <= 0.3 * costs.backward
        found.append(sum(w for w, c in zip(worth, chosen, strict=True) if c))
    assert found[0] < found[2] and found[1] <= found[2]


def test_the_whole_budget_buys_every_tensor_of_positive_importance():
    costs, worth = Costs([1, 2, 3, 4], [4, 3, 2, 1], 5), [0.5, -0.1, 0.0, 1.0]
    assert choose(costs, worth, costs.backward) == [True, False, False, True]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", [(), (1,), (0,)])
def test_costs_are_what_torch_computes(tied, frozen):
    run = make(tied, frozen)
    order, _ = importances(run)
    costs = measure_costs(run, order)
    assert order[-1].name == "embed.weight"
    for chosen in product([False, True], repeat=len(order)):
        for info, one in zip(order, chosen, strict=True):
            info.param.requires_grad_(one)
        if not any(chosen):
            continue
        logits = run.model(torch.arange(TOKENS))
        with Products() as counter:
            logits.sum().backward()
        rows = 4 if chosen[-1] else 0  # the embedding's, which are no product
        assert counter.operations == TOKENS * (costs.of(chosen) - rows)
    with Products() as counter, torch.no_grad():
        run.model(torch.arange(TOKENS))
    assert counter.operations == TOKENS * costs.forward


def test_matrices_of_experts_cost_what_matrices_do():
    """As if every token went through each, trained or crossed."""
    made = make()
    experts = nn.ParameterDict({"up": nn.Parameter(torch.ones(3, 8, 4))})
    made.model.layers.append(experts)
    crossed = measure_costs(made, made.parameters[::-1])
    infos = [*made.parameters, ParamInfo("layers.2.up", experts["up"], "vector", block="layers.2")]
    run = Run(made.model, infos, made.optimizer, made.schedule, 9)
    costs = measure_costs(run, infos[::-1])
    assert costs.weight[0] == 2 * 3 * 8 * 4
    assert costs.forward == crossed.forward and sum(costs.passing) == sum(crossed.passing)


def test_importance_is_the_loss_that_a_step_is_worth_to_first_order():
    run = make()
    order, worth = importances(run)
    other = make()
    params = {info.name: info.param for info in other.parameters}
    other.closure()
    before = {name: p.detach().clone() for name, p in params.items()}
    with torch.no_grad():
        for p in params.values():  # the first step of AdamW
            p.sub_(0.01 * p.grad / (p.grad.abs() + 1e-8))
            p.grad = None
    other.closure()
    values = {n: float(-(p.grad * (p - before[n])).detach().sum()) for n, p in params.items()}
    largest = max(map(abs, values.values()))
    assert [info.name for info in order] == [
        "lm_head.weight",
        "layers.1.weight",
        "layers.0.weight",
        "embed.weight",
    ]
    for info, value in zip(order, worth, strict=True):
        assert value == pytest.approx(values[info.name] / largest, rel=1e-3)


def test_a_selection_leaves_weights_moments_and_draws_as_they_were():
    run = make(share=0.9, every=1)
    for _ in range(2):
        run.fire("before_step"), run.closure(), run.fire("after_backward"), run.optimizer.step()
        run.step += 1
        run.fire("after_step"), run.optimizer.zero_grad(set_to_none=True)
    weights = [info.param.detach().clone() for info in run.parameters]
    state, draws = copy.deepcopy(run.optimizer.state_dict()), torch.get_rng_state()
    importances(run)
    assert all(torch.equal(a.param, b) for a, b in zip(run.parameters, weights, strict=True))
    assert all(info.param.grad is None for info in run.parameters)
    after = run.optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"] and after["state"].keys() == state["state"].keys()
    assert len(state["state"]) > 0
    for index, kept in state["state"].items():
        assert all(torch.equal(after["state"][index][key], value) for key, value in kept.items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_step_stays_within_the_share_and_says_what_it_took():
    run = make(share=0.6, every=3)
    run.metrics = {}
    run.fire("before_step")
    assert 0.3 < run.metrics["share_of_operations"] <= 0.6
    trains = {info.name for info in run.parameters if info.param.requires_grad}
    assert len(trains) == run.metrics["selected_tensors"] and trains == run.callbacks[0].chosen


def test_a_budget_below_the_least_is_raised_and_said_once(capsys):
    run = make(share=0.1, every=1)
    costs = Costs([0.0] * 40, [1.0] * 40, 20.0)
    for _ in range(2):
        chosen = run.callbacks[0].affordable(costs, [1.0] * 40)
    assert sum(chosen) == 2  # 5 % of 40
    assert capsys.readouterr().err.count("leaves no backward pass; 0.367 is taken") == 1


def test_what_cannot_be_chosen_is_refused():
    run = make(share=0.4)
    with pytest.raises(RecipeError, match=r"select\.share: 0\.4 is too small .* write more"):
        run.callbacks[0].affordable(Costs([90.0, 1.0], [9.0, 1.0], 50.0), [1.0, 1.0])


def test_a_step_that_moves_nothing_is_worth_nothing_and_told():
    run = make()
    run.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(NumericalError, match=r"changes no loss.*change optimizer\.lr"):
        importances(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter={method: lora}"], r"adapter.* write null"),
        (["model.dtype=float16"], r"model\.dtype.* write bfloat16"),
    ],
)
def test_recipes_without_a_probing_step_are_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/greentrainer", ["model.name=x/y", *overrides])
