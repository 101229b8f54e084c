"""The draws of DyLoRA, and that a step moves what learns and nothing else."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.less import Less
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.dylora import DyLoRA
from lrft.methods.allocate.dylora import DyLoRADraw
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule


def make(ranks=(4, 4), seed=0, optimizer="adamw", lr=0.05, draws=True, **settings):
    torch.manual_seed(0)
    sites = []
    for index, rank in enumerate(ranks):
        base = QUANTIZERS.get("none")(torch.randn(12, 12) / 3)
        sites.append(
            Adapted(base, DyLoRA(DyLoRA.Config(method="dylora", rank=rank), Site(str(index), 12, 12)))
        )
    model = nn.Sequential(*sites)
    infos = [
        ParamInfo(f"{path}.{key}", site.adapter.get_parameter(key), f"lora_{key}", path)
        for path, site in model.named_children()
        for key in "AB"
    ]
    config = OPTIMIZERS.declared(optimizer).config(lr=lr, weight_decay=0.1)
    optimizer = OPTIMIZERS.get(optimizer).build(infos, config)
    run = Run(
        model, infos, optimizer, schedule.build(optimizer, SCHEDULES.settings("linear"), 90), 90, seed=seed
    )
    if draws:
        run.callbacks = [DyLoRADraw(DyLoRADraw.Config(method="dylora", **settings))]
    run.fire("start")
    return run


def step(run, micro_batches=1):
    run.metrics = {}
    run.seed_step()
    run.fire("before_step")
    for _ in range(micro_batches):
        (run.model(torch.randn(6, 12)) - torch.ones(6, 12)).square().mean().backward()
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.schedule.step()
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


def directions(run):
    """Values and moments of every direction: site, factor -> (rank, numbers)."""
    found = {}
    for info in run.parameters:
        held = [
            info.param.detach(),
            *(run.optimizer.state[info.param].get(k) for k in ("exp_avg", "exp_avg_sq")),
        ]
        rows = [part if info.name.endswith("A") else part.mT for part in held if part is not None]
        found[info.name] = torch.cat(rows, dim=1).clone()
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lora_plus"])
@pytest.mark.parametrize("update", ["last", "all"])
def test_a_step_moves_the_drawn_directions_and_leaves_the_others_to_the_last_bit(update, optimizer):
    """Against momentum and a weight decay of 0.1, which move a parameter whose gradient is zero."""
    run = make(update=update, optimizer=optimizer, lr=1e-3 if optimizer == "sgd" else 0.05)
    step(run)
    for _ in range(20):
        before = directions(run)
        step(run)
        live = run.metrics["rank"]
        learns = [live - 1] if update == "last" else list(range(live))
        for name, after in directions(run).items():
            assert after.isfinite().all()
            moved = (after != before[name]).any(dim=1).nonzero().flatten().tolist()
            assert set(moved) <= set(learns)
            assert moved == learns or name.endswith("A")  # A waits for B to leave zero


def test_without_the_draws_weight_decay_moves_every_direction():
    """Guards the test above: an optimizer that never moved them would pass it."""
    run = make(draws=False)
    step(run)
    before = directions(run)
    step(run)
    assert all((after != before[name]).any(dim=1).all() for name, after in directions(run).items())


def test_every_rank_is_drawn_alike_often_and_is_one_for_the_whole_model():
    run = make(ranks=(5, 5))
    counts = Counter()
    for index in range(3000):
        run.step = index
        run.seed_step()
        run.fire("before_step")
        live = {site.adapter.live for _, site in run.adapted()}
        assert len(live) == 1
        assert all(site.adapter.first == site.adapter.live - 1 for _, site in run.adapted())
        counts[live.pop()] += 1
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(abs(count - 600) < 90 for count in counts.values())  # four deviations


def test_a_site_of_a_smaller_rank_uses_all_it_has():
    run = make(ranks=(2, 6))
    for index in range(40):
        run.step = index
        run.seed_step()
        run.fire("before_step")
        small, large = (site.adapter for _, site in run.adapted())
        assert small.live == min(large.live, 2)


def test_accumulated_micro_batches_share_one_draw():
    run = make()
    seen = set()
    step(run, micro_batches=3)
    for info in run.parameters:
        state = run.optimizer.state[info.param]["exp_avg_sq"]
        if info.name.endswith("B"):
            seen |= set(state.any(dim=0).nonzero().flatten().tolist())
    assert seen == {run.metrics["rank"] - 1}


@pytest.mark.parametrize("cut", [1, 6])
def test_a_resumed_run_draws_what_the_unbroken_one_does(cut):
    whole, first = make(seed=3), make(seed=3)
    for _ in range(12):
        step(whole)
    for _ in range(cut):
        step(first)
    second = make(seed=3)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.schedule.load_state_dict(first.schedule.state_dict())
    second.step = cut
    for _ in range(12 - cut):
        step(second)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a.param, b.param)


def test_after_the_run_the_adapter_has_its_full_rank():
    run = make()
    step(run)
    run.fire("finish")
    assert all((site.adapter.live, site.adapter.first) == (4, 0) for _, site in run.adapted())


def test_a_start_that_the_base_gave_up_is_refused():
    run = make()
    for _, site in run.adapted():
        site.base = Less(site.base, copy.deepcopy(site.adapter))
    with pytest.raises(RecipeError, match=r"init\.method: .*write default"):
        run.fire("start")


@pytest.mark.parametrize(("update", "by"), [("last", 5), ("all", 2)])
def test_by_the_step_it_names_every_factor_has_had_a_gradient(update, by):
    for seed in range(10):
        run = make(update=update, seed=seed)
        assert run.callbacks[0].gradients_by(run) == by
        for _ in range(by):
            step(run)
        assert all(run.optimizer.state[info.param]["exp_avg"].any() for info in run.parameters)
