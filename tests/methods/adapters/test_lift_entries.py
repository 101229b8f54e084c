"""LIFT's entries beside a frozen base: what `select: lift` does in the weight, on vectors of the entries alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.lift_entries import LIFTEntries
from lrft.methods.allocate.lift_entries import LIFTRefresh
from lrft.methods.inits.lift_entries import LIFTPlaces
from lrft.methods.select.lift import LIFT
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule

OUT, WIDTH, EVERY = 24, 16, 3


def make(storage="none", rank=1, filter_rank=2):
    torch.manual_seed(0)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    base = QUANTIZERS.get(storage)(weight, None, QUANTIZERS.declared(storage).config(method=storage))
    config = LIFTEntries.Config(method="lift_entries", rank=rank, filter_rank=filter_rank)
    adapter = LIFTEntries(config, Site("a", WIDTH, OUT))
    LIFTPlaces(None).apply(adapter, weight, {}, None)
    return Adapted(base, adapter), weight


def running(site, lr=0.05):
    adapter = site.adapter
    infos = [ParamInfo("a.values", adapter.values, "sparse", "a")]
    config = OPTIMIZERS.declared("adamw").config(method="adamw", lr=lr)
    optimizer = OPTIMIZERS.get("adamw").build(infos, config)
    run = Run(
        nn.ModuleDict({"a": site}),
        infos,
        optimizer,
        schedule.build(optimizer, SCHEDULES.settings("constant"), 99),
        99,
    )
    run.callbacks = [LIFTRefresh(LIFTRefresh.Config(method="lift_entries", every=EVERY))]
    return run


def step(run):
    run.metrics = {}
    run.fire("before_step")
    x = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(run.step))
    run.model["a"](x).square().sum().backward()
    run.optimizer.step()
    run.step += 1
    run.optimizer.zero_grad(set_to_none=True)


def test_the_entries_are_those_that_the_selection_in_the_weight_takes():
    site, weight = make()
    selector = LIFT(LIFT.Config(method="lift", budget_rank=1, filter_rank=2))
    assert torch.equal(site.adapter.places.long(), selector.largest(weight))
    assert len(site.adapter.places) == OUT + WIDTH


def test_more_entries_than_there_are_is_all_of_them():
    site, _ = make(rank=99)
    assert site.adapter.places.tolist() == list(range(OUT * WIDTH))


def test_training_with_refreshes_is_adam_on_the_weight_with_moments_kept_where_entries_stay():
    """The authors' sparse AdamW: moments scattered to the whole, gathered at the new places, 0 elsewhere."""
    site, dense = make()
    run, (b1, b2), eps = running(site), (0.9, 0.999), 1e-8
    selector = LIFT(LIFT.Config(method="lift", budget_rank=1, filter_rank=2))
    m, v = torch.zeros(OUT * WIDTH), torch.zeros(OUT * WIDTH)
    theirs, moved = dense.clone().flatten(), []
    for t in range(1, 11):
        step(run)
        moved.append(run.metrics.get("entries_moved"))
        if t == 1 or t % EVERY == 0:  # the code chooses anew after step t - 1 where t is a multiple
            places = selector.largest(theirs.view(OUT, WIDTH))
            outside = torch.ones(OUT * WIDTH).index_fill(0, places, 0) == 1
            m[outside], v[outside] = 0, 0
        x = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(t - 1))
        W = theirs.view(OUT, WIDTH).clone().requires_grad_(True)
        nn.functional.linear(x, W).square().sum().backward()
        g = W.grad.flatten()[places]
        m[places], v[places] = b1 * m[places] + (1 - b1) * g, b2 * v[places] + (1 - b2) * g * g
        theirs[places] -= 0.05 * (m[places] / (1 - b1**t)) / ((v[places] / (1 - b2**t)).sqrt() + eps)
        torch.testing.assert_close(site.merged_weight(), theirs.view(OUT, WIDTH), atol=1e-5, rtol=1e-4)
    assert [t for t, share in enumerate(moved) if share is not None] == [2, 5, 8] and 0 < moved[2] < 1
    assert len(site.adapter.left_places) > 0


@pytest.mark.parametrize("storage", ["none", "nf4_reference", "int8_reference"])
def test_a_refresh_leaves_the_function_and_the_stored_base(storage):
    site, _ = make(storage)
    nn.init.normal_(site.adapter.values)
    x, stored = torch.randn(5, WIDTH), site.base.weight().clone()
    before, change = site(x), site.adapter.change()
    site.adapter.renew(torch.arange(0, 80, 2))
    torch.testing.assert_close(site(x), before)
    assert torch.equal(site.adapter.change(), change) and torch.equal(site.base.weight(), stored)
    both = torch.cat([site.adapter.places, site.adapter.left_places]).tolist()
    assert len(both) == len(set(both))


def test_an_entry_that_comes_back_goes_on_from_what_it_had_learnt():
    site, _ = make()
    nn.init.normal_(site.adapter.values)
    places, values = site.adapter.places.clone().long(), site.adapter.values.detach().clone()
    elsewhere = torch.tensor([p for p in range(OUT * WIDTH) if p not in set(places.tolist())])[: len(places)]
    site.adapter.renew(elsewhere)
    assert not site.adapter.values.any() and len(site.adapter.left_places) == len(places)
    site.adapter.renew(places)
    assert torch.equal(site.adapter.values, values) and not len(site.adapter.left_places)


def test_a_checkpoint_holds_the_entries_at_rest_and_a_reset_forgets_them():
    site, _ = make()
    nn.init.normal_(site.adapter.values)
    site.adapter.renew(torch.arange(OUT + WIDTH))
    state, other = site.adapter.state_dict(), make()[0].adapter
    other.load_state_dict(state)
    assert torch.equal(other.change(), site.adapter.change())
    assert {state[name].dtype for name in ("places", "left_places")} == {torch.int32}
    site.adapter.reset()
    assert not site.adapter.change().any() and not len(site.adapter.left_places)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=default"], r"init\.method: .* write init: lift_entries"),
        (["adapter={method: shira, rank: 4}", "init=default"], "renewable"),
        (["allocate.every=4"], r"allocate\.every: 4 steps .* use at most 2"),
        (["optimizer=muon"], "entry"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/lift_entries", ["model.name=x/y", *overrides])
