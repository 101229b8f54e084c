"""PeriodicLoRA's own statements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.less import Less
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.restart.periodic import PeriodicLoRA, _check_divisible, unload
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule

X = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))


LINEAR = [
    name
    for name in ADAPTERS.names()
    if "linear_delta" in ADAPTERS.declared(name).provides
    and "one_stage" not in ADAPTERS.declared(name).requires
]


def make_site(adapter="lora", storage="none", **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get(storage)(
        torch.randn(64, 64) / 8, torch.randn(64), QUANTIZERS.declared(storage).config()
    )
    config = ADAPTERS.declared(adapter).config
    if "rank" in config.model_fields:
        settings.setdefault("rank", 4)
    part = ADAPTERS.get(adapter)(config(method=adapter, **settings), Site("s", 64, 64))
    part.start(base.weight())
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Adapted(base, part)


def make_run(site, total=12, rates="linear", **settings):
    held = site.adapter.named_parameters()
    infos = [ParamInfo(f"s.{k}", p, site.adapter.roles[k], "s") for k, p in held if p.requires_grad]
    optimizer = OPTIMIZERS.get("adamw").build(infos, OPTIMIZERS.declared("adamw").config(lr=0.01))
    rates = schedule.build(optimizer, SCHEDULES.settings(rates), total)
    run = Run(nn.ModuleDict({"s": site}), infos, optimizer, rates, total)
    run.callbacks = [PeriodicLoRA(PeriodicLoRA.Config(method="periodic", **settings))]
    return run


def steps(run, count):
    rates = []
    site = run.model["s"]
    for _ in range(count):
        rates.append(run.optimizer.param_groups[0]["lr"])
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(run.step))
        site(x).square().mean().backward()
        run.optimizer.step()
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
        run.optimizer.zero_grad(set_to_none=True)
    return rates


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("adapter", "settings"), [*((name, {}) for name in LINEAR), ("gralora", {"hybrid_rank": 2})]
)
def test_a_share_unloaded_by_the_root_leaves_the_function_unchanged(adapter, settings, storage, share):
    site = make_site(adapter, storage, **settings)
    if "undivided" in site.adapter.provides:  # no number of it multiplies the whole change
        with pytest.raises(RecipeError, match=f"only the whole change of {adapter} can be unloaded"):
            _check_divisible(site)
        return
    dense = site.base.weight()
    delta, merged = site.adapter.delta_weight(dense), site.merged_weight()
    unload(site, share)
    torch.testing.assert_close(site.base.change(), share * delta, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(site.adapter.delta_weight(dense), (1 - share) * delta, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_linear_form_loses_exactly_m_times_1_minus_m_of_the_change(share):
    site = make_site()
    delta, merged = site.adapter.delta_weight(site.base.weight()), site.merged_weight()
    A = site.adapter.A.detach().clone()
    unload(site, share, "linear")
    torch.testing.assert_close(site.adapter.A.detach(), (1 - share) * A)
    torch.testing.assert_close(
        merged - site.merged_weight(), share * (1 - share) * delta, atol=1e-5, rtol=1e-4
    )


def test_both_factors_carry_the_root():
    site = make_site()
    A, B = site.adapter.A.detach().clone(), site.adapter.B.detach().clone()
    unload(site, 0.36)
    torch.testing.assert_close(site.adapter.A.detach(), 0.8 * A)
    torch.testing.assert_close(site.adapter.B.detach(), 0.8 * B)


def test_a_share_of_1_is_the_plain_form_and_not_a_dead_unit():
    changed = []
    for share in (None, 1.0):
        run = make_run(make_site(), every=3, share=share)
        run.fire("start")
        steps(run, 3)
        assert run.model["s"].adapter.A.any()
        assert not run.model["s"].adapter.B.any()
        changed.append((run.model["s"].base.change(), run.model["s"].adapter.A.detach()))
    assert all(torch.equal(a, b) for a, b in zip(*changed, strict=True))


def test_with_a_share_nothing_is_drawn_and_the_adapter_goes_on():
    run = make_run(make_site(), every=2, share=0.25)
    run.fire("start")
    steps(run, 2)
    before = torch.get_rng_state()
    steps(run, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.model["s"].adapter.B.any()
    assert run.metrics["restarts"] == 3


def test_the_learning_rate_takes_no_notice():
    run = make_run(make_site(), every=3)
    run.fire("start")
    assert steps(run, 12) == pytest.approx([0.01 * (1 - t / 12) for t in range(12)])


def test_most_moments_are_zeroed_and_step_counts_stay():
    run = make_run(make_site(), every=4, share=0.5, prune_ratio=0.75)
    run.fire("start")
    steps(run, 4)
    for info in run.parameters:
        state = run.optimizer.state[info.param]
        assert float(state["step"]) == 4
        for name in ("exp_avg", "exp_avg_sq"):
            assert 0.6 < (state[name] == 0).double().mean() < 0.9


def test_only_the_whole_of_a_change_that_depends_on_the_weight_can_be_unloaded():
    with pytest.raises(RecipeError, match=r"restart\.share: only the whole change of dora"):
        make_run(make_site("dora"), every=3, share=0.5).fire("start")
    make_run(make_site("dora"), every=3).fire("start")


def test_only_the_whole_change_can_be_unloaded_where_the_start_is_a_part_of_the_base():
    site = make_site()
    start = ADAPTERS.get("lora")(site.adapter.config, site.adapter.site)
    site = Adapted(Less(site.base, start), site.adapter)
    with pytest.raises(RecipeError, match=r"restart\.share: .*gave up the start"):
        make_run(site, every=3, share=0.5).fire("start")


@pytest.mark.parametrize("anchored", [True, False])
def test_the_start_that_the_base_gave_up_stays_given_up(anchored):
    """A whole unload of an adapter with a start: the function and the merge are what they were."""
    site = make_site()
    start = ADAPTERS.get("lora")(site.adapter.config, site.adapter.site)
    nn.init.normal_(start.B, std=0.3)
    site = Adapted(Less(site.base, start, anchored), site.adapter)
    run, x = make_run(site, every=1, total=3), torch.randn(5, 64)
    with torch.no_grad():
        before, merged = site(x), site.merged_weight()
        run.step = 1
        run.callbacks[0].after_step(run)
        torch.testing.assert_close(site(x), before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(site.merged_weight(), merged, atol=1e-4, rtol=1e-4)
