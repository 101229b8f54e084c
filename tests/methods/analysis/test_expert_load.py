"""The balance of experts, of counts that are known and of adapters that route real tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.analysis.expert_load import ExpertLoad, balance
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, ANALYSES
from lrft.registry.errors import RecipeError


@pytest.mark.parametrize(
    ("counts", "entropy", "most", "idle"),
    [
        ([5, 5, 5, 5], 1, 1, 0),
        ([7, 0, 0, 0], 0, 4, 0.75),
        ([6, 2], -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2), 1.5, 0),
        ([0, 0], 1, 1, 0),
        ([3], 1, 1, 0),
    ],
)
def test_balance_is_the_formula(counts, entropy, most, idle):
    assert balance([float(c) for c in counts]) == pytest.approx(
        {"entropy": entropy, "most": most, "idle": idle}
    )


def site(name: str, width: int = 12, **settings) -> Adapted:
    torch.manual_seed(0)
    adapter = ADAPTERS.get(name)(ADAPTERS.settings(name, **settings), Site("a.b", width, 8))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return Adapted(Dense(torch.randn(8, width)), adapter)


def looked_at(module: Adapted, *steps: list[torch.Tensor], processes: int = 1):
    """What an analysis finds of steps of some passes, and the metrics of the last."""
    metrics: dict[str, float] = {}
    run = SimpleNamespace(
        adapted=lambda: iter([("a.b", module)]),
        summed=lambda counts: processes * counts,
        record=lambda **found: metrics.update(found),
        summary={},
    )
    analysis = ExpertLoad(ANALYSES.settings("expert_load"))
    analysis.start(run)
    for passes in steps:
        for x in passes:
            module(x)
        analysis.after_step(run)
    analysis.finish(run)
    return run.summary["analysis"]["expert_load"], metrics, analysis


@pytest.mark.parametrize("processes", [1, 3])
def test_a_runs_balance_is_that_of_all_steps_and_passes_together(processes):
    module = site("mola", experts=5, top_k=2, dropout=0.0)
    xs = [torch.randn(2, 7, 12) for _ in range(3)]
    found, metrics, analysis = looked_at(module, xs[:1], xs[1:], processes=processes)
    router = module.adapter.router

    def counted(*parts):
        chosen = torch.cat([torch.topk(x @ router.mT, 2).indices.flatten() for x in parts])
        return (processes * torch.bincount(chosen, minlength=5)).float().tolist()

    assert analysis.totals == {"a.b": counted(*xs)}
    every = balance(counted(*xs))
    assert found["entropy"] == {"a.b": pytest.approx(every["entropy"], rel=1e-6)}
    assert found["most_mean"] == pytest.approx(every["most"], rel=1e-6)
    last = balance(counted(*xs[1:]))
    assert metrics == {f"expert_{name}": pytest.approx(last[name], abs=1e-6) for name in last}


def test_a_soft_mixture_is_weighed_also_without_its_penalty():
    module = site("loramoe", experts=3, dropout=0.0, beta=0.0)
    x = torch.randn(2, 7, 12)
    _, _, analysis = looked_at(module, [x])
    weights = torch.softmax(x @ module.adapter.router.mT, -1).sum((0, 1))
    assert analysis.totals["a.b"] == pytest.approx(weights.tolist(), rel=1e-5)
    assert module.adapter.penalty() is None


def test_every_layer_of_a_tree_is_a_router_of_its_own():
    module = site("smore", experts=[3, 4], top_k=[2, 2], ranks=[1, 1])
    _, _, analysis = looked_at(module, [torch.randn(5, 12)])
    assert {router: sum(got) for router, got in analysis.totals.items()} == {
        "a.b layer 0": 5 * 2 * 2,
        "a.b layer 1": 5 * 2,
    }


def test_padding_and_passes_that_do_not_count_are_not_counted():
    module = site("mola", experts=4, dropout=0.0)
    x, none = torch.randn(1, 6, 12), torch.zeros(0, dtype=torch.long)
    rows = Batch(torch.zeros(1, 6), torch.zeros(1, 6), ((0, 0, 4),), none, none)
    module.adapter.take_load()
    with computing(rows):
        module(x)
    with computing(rows, counts=False):
        module(x)
    module.eval()(x)
    assert module.adapter.take_load()[""].sum() == 4 * 2


def test_an_adapter_without_routers_is_refused():
    with pytest.raises(RecipeError, match="expert_load requires"):
        load_recipe("smoke/lora", ["analyse=[expert_load]"])
