"""ReLoRA's own statements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.methods.restart._unload import above_quantile
from lrft.methods.restart.relora import ReLoRA
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule


def make(total=12, optimizer="adamw", rates="linear", width=64, **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(width, width))
    site = Adapted(base, LoRA(LoRA.Config(method="lora", rank=8), Site("site", width, width)))
    model = nn.ModuleDict({"site": site})
    infos = [ParamInfo(f"site.{k}", site.adapter.get_parameter(k), f"lora_{k}", "site") for k in "AB"]
    optimizer = OPTIMIZERS.get(optimizer).build(infos, OPTIMIZERS.declared(optimizer).config(lr=0.01))
    run = Run(model, infos, optimizer, schedule.build(optimizer, SCHEDULES.settings(rates), total), total)
    run.callbacks = [ReLoRA(ReLoRA.Config(method="relora", **settings))]
    run.fire("start")
    return run, site


def steps(run, site, count=1):
    """That many steps; the rate of each."""
    rates = []
    for _ in range(count):
        rates.append(run.optimizer.param_groups[0]["lr"])
        x = torch.randn(8, site.base.in_features, generator=torch.Generator().manual_seed(run.step))
        site(x).square().mean().backward()
        run.optimizer.step()
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
        run.optimizer.zero_grad(set_to_none=True)
    return rates


def test_after_a_merge_b_is_zero_and_a_is_drawn_from_the_kaiming_range():
    run, site = make(every=3)
    before = site.adapter.A.detach().clone()
    steps(run, site, 3)
    assert not site.adapter.B.any()
    assert not torch.isclose(site.adapter.A, before).any()
    bound = 1 / site.base.in_features**0.5
    assert 0.9 * bound < site.adapter.A.abs().max() <= bound


def test_the_rate_falls_at_a_restart_and_rises_evenly_to_where_the_schedule_is():
    run, site = make(total=20, every=8, warmup=3)
    rates = steps(run, site, 20)
    plain = [0.01 * (1 - t / 20) for t in range(20)]
    expected = [p * ((t - 8) % 8 + 1) / 4 if t >= 8 and t % 8 < 3 else p for t, p in enumerate(plain)]
    assert rates == pytest.approx(expected)
    assert rates[8] < rates[9] < rates[10] < rates[11]


def test_merges_and_resets_may_have_cycles_of_their_own():
    run, site = make(every=2, cycle=4, warmup=1, rates="constant", reset="all")
    merged, forgotten, rates = [], [], []
    for _ in range(10):
        run.metrics = {}
        rates += steps(run, site)
        merged += [run.step] if "restarts" in run.metrics else []
        forgotten += [run.step] if not run.optimizer.state else []
    assert merged == [2, 4, 6, 8, 10]
    assert forgotten == [4, 8]
    assert [t for t, rate in enumerate(rates) if rate < 0.01] == [4, 8]


def test_a_share_of_the_moments_is_zeroed_at_random_and_the_step_count_stays():
    run, site = make(every=5, warmup=0, width=512)
    steps(run, site, 5)
    zero = []
    for key in "AB":
        state = run.optimizer.state[site.adapter.get_parameter(key)]
        assert float(state["step"]) == 5
        zero += [(state[name] == 0) for name in ("exp_avg", "exp_avg_sq")]
    for mask in zero:
        assert 0.997 < mask.double().mean() < 1
    assert not torch.equal(zero[2], zero[3])  # every moment has a mask of its own


def test_pruning_by_magnitude_is_that_of_the_authors_code():
    """Their rule: keep what is larger than torch.quantile of the magnitudes."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(7, 11), (64, 3), (1, 1), (128,)]:
        for ratio in (0.0, 0.5, 0.8, 0.9, 0.99, 0.999):
            magnitude = torch.randn(shape, generator=generator).abs()
            expected = magnitude > torch.quantile(magnitude.flatten(), ratio)
            assert torch.equal(above_quantile(magnitude, ratio), expected)


def test_pruning_by_magnitude_keeps_the_largest_of_every_moment():
    run, site = make(every=4, warmup=0, reset="magnitude", prune_ratio=0.9)
    unpruned, other = make(every=5, warmup=0)
    steps(run, site, 4)
    steps(unpruned, other, 4)
    for key in "AB":
        pruned = run.optimizer.state[site.adapter.get_parameter(key)]
        whole = unpruned.optimizer.state[other.adapter.get_parameter(key)]
        for name in ("exp_avg", "exp_avg_sq"):
            largest = whole[name].abs() > torch.quantile(whole[name].abs(), 0.9)
            assert torch.equal(pruned[name], whole[name] * largest)


def test_moments_as_codes_are_refused_after_the_first_step_unless_the_whole_state_goes():
    pytest.importorskip("bitsandbytes")
    run, site = make(every=3, optimizer="adamw8bit", width=512)
    with pytest.raises(RecipeError, match=r"restart\.reset: .*write all"):
        steps(run, site)
    run, site = make(every=3, optimizer="adamw8bit", width=512, reset="all")
    steps(run, site, 3)
    assert not run.optimizer.state


def test_parameters_outside_the_adapters_keep_their_moments():
    run, site = make(every=2, warmup=0, reset="all")
    run.parameters[0] = ParamInfo("norm.weight", site.adapter.A, "vector")
    steps(run, site, 2)
    assert set(run.optimizer.state) == {site.adapter.A}


def test_the_last_step_starts_nothing_anew():
    run, site = make(total=6, every=3, warmup=0)
    steps(run, site, 6)
    assert site.adapter.B.any()


def test_published_defaults_and_the_warm_up_of_a_short_cycle():
    method = ReLoRA(ReLoRA.Config(method="relora"))
    assert (method.config.every, method.cycle, method.warmup) == (1000, 1000, 100)
    assert (method.config.reset, method.config.prune_ratio) == ("random", 0.999)
    assert ReLoRA(ReLoRA.Config(method="relora", every=20)).warmup == 2
    with pytest.raises(ValueError, match="10 steps of warm-up do not fit"):
        ReLoRA.Config(method="relora", every=10, warmup=10)
