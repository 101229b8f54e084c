"""Weight refactorization: the product stays, its factors are balanced, the optimizer starts anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.restart.refactor import Refactor, balanced_pair
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule


def make(adapter="lora", total=12, optimizer="adamw", rank=4, **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(24, 16) / 4)
    part = ADAPTERS.get(adapter)(
        ADAPTERS.declared(adapter).config(method=adapter, rank=rank), Site("s", 16, 24)
    )
    part.start(base.weight())
    site = Adapted(base, part)
    norm = nn.Linear(24, 1)
    infos = [ParamInfo(f"s.{n}", p, part.roles[n], "s") for n, p in part.named_parameters()]
    infos.append(ParamInfo("norm.weight", norm.weight, "vector"))
    made = OPTIMIZERS.get(optimizer).build(infos, OPTIMIZERS.declared(optimizer).config(lr=0.01))
    model = nn.Sequential()
    model.add_module("s", site)
    model.add_module("norm", norm)
    run = Run(model, infos, made, schedule.build(made, SCHEDULES.settings("constant"), total), total)
    run.callbacks = [Refactor(Refactor.Config(method="refactor", **settings))]
    return run, part


def steps(run, count):
    """The rate of each step."""
    rates = []
    for _ in range(count):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.metrics = {}
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(run.step))
        (run.model(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
    return rates


@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24), (5, 40)])
def test_balanced_factors_are_those_of_the_svd_of_the_product(out, width):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(5, width, generator=generator), 30 * torch.randn(out, 5, generator=generator)
    newA, newB = balanced_pair(A, B)
    torch.testing.assert_close(newB @ newA, B.double() @ A.double(), rtol=1e-9, atol=1e-9)
    S = torch.linalg.svdvals(B.double() @ A.double())[:5]
    for gram in (newA @ newA.mT, newB.mT @ newB):
        torch.testing.assert_close(gram, S.diag(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(newA.norm(), newB.norm())


@pytest.mark.parametrize("adapter", ["lora", "dora", "factorized", "sltrain"])
def test_in_a_run_the_loss_goes_on_and_the_factors_are_balanced(adapter):
    run, part = make(adapter, every=4)
    x = torch.randn(8, 16)
    steps(run, 3)
    method, run.callbacks = run.callbacks[0], []
    steps(run, 1)
    y = run.model(x)
    before = part.B.detach().clone()
    method.after_step(run)
    torch.testing.assert_close(run.model(x), y, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(part.B, before, atol=1e-3)
    torch.testing.assert_close(part.A @ part.A.mT, part.B.mT @ part.B, rtol=1e-4, atol=1e-5)
    assert run.metrics == {"restarts": 1}


def test_the_whole_state_goes_or_that_of_the_factors_alone():
    run, _ = make(every=4)
    steps(run, 4)
    assert not run.optimizer.state
    run, _ = make(every=4, reset="factors")
    steps(run, 4)
    assert set(run.optimizer.state) == {run.parameters[-1].param}


def test_the_rate_falls_and_rises_evenly():
    run, _ = make(every=4, warmup=2)
    assert steps(run, 8) == pytest.approx([0.01] * 4 + [0.01 / 3, 0.02 / 3, 0.01, 0.01])
    assert Refactor(Refactor.Config(method="refactor")).warmup == 10
    assert Refactor(Refactor.Config(method="refactor", every=4)).warmup == 3
    with pytest.raises(ValueError, match="4 steps of warm-up do not fit into 4; use at most 3"):
        Refactor.Config(method="refactor", every=4, warmup=4)


def test_a_product_of_a_lower_rank_is_left_as_it_is_and_counted():
    """Balanced, both factors of a product of 0 would be 0, which no gradient leads away from."""
    run, part = make(every=1)
    part.A.requires_grad_(False)
    part.B.requires_grad_(False)
    before = part.A.clone()
    steps(run, 1)
    assert torch.equal(part.A, before) and run.metrics == {"restarts": 1, "left_unbalanced": 1}
    A, B = torch.randn(4, 16), torch.randn(24, 4)
    B[:, 3] = B[:, 2]
    A[3] = A[2]
    assert balanced_pair(A, B) is None


def test_the_last_step_refactors_nothing():
    run, _ = make(total=4, every=4)
    steps(run, 4)
    assert run.metrics == {} and run.optimizer.state


def test_a_rank_above_that_of_the_weight_is_refused_by_name():
    run, _ = make(rank=17)
    with pytest.raises(RecipeError, match="rank 17 at s is more than its weight can have; use at most 16"):
        run.fire("start")


def test_an_adapter_whose_factors_mean_more_than_their_product_is_refused():
    with pytest.raises(RecipeError, match="refactor"):
        load_recipe("smoke/refactor", ["adapter=delora", "model.name=x/y"])
