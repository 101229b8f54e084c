"""LaMDA's own statements: the structure, and what of B rests when."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.lamda import LaMDA
from lrft.methods.quant.none import Dense
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.training import schedule

RANK, STEPS = 4, 20


def make(**settings):
    torch.manual_seed(0)
    weight = torch.randn(24, 16)
    config = LaMDA.Config(method="lamda", **{"rank": RANK, "frozen_by": 0.5, **settings})
    return Adapted(Dense(weight), LaMDA(config, Site("a", 16, 24))), weight


def running(method="adamw", total=STEPS, earlier=(), **settings):
    site, _ = make(**settings)
    infos = [
        ParamInfo(f"0.{key}", parameter, LaMDA.roles[key], "0")
        for key, parameter in site.adapter.named_parameters()
    ]
    config = OPTIMIZERS.declared(method).config(lr=0.05, weight_decay=0.1)
    optimizer = OPTIMIZERS.get(method).build(infos, config)
    rates = schedule.build(optimizer, SCHEDULES.settings("constant"), total)
    run = Run(nn.Sequential(site), infos, optimizer, rates, total, earlier_ends=earlier)
    run.callbacks = [LaMDA.timed(site.adapter.config)]
    return run, site.adapter


def step(run):
    run.metrics = {}
    run.seed_step()
    run.fire("before_step")
    (run.model(torch.randn(6, 16)) - 1).square().mean().backward()
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.schedule.step()
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


def test_the_change_is_the_product_of_three():
    site, weight = make(alpha=6.0)
    nn.init.normal_(site.adapter.B)
    A, S, B = site.adapter.get_buffer("A"), site.adapter.S, site.adapter.B
    torch.testing.assert_close(site.merged_weight(), weight + 1.5 * B @ S @ A, atol=1e-5, rtol=1e-5)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), F.linear(x, weight + 1.5 * B @ S @ A), atol=1e-5, rtol=1e-5)


def test_published_scripts_end_with_the_core_alone():
    """Rank 32 on all seven layers of LLaMA-7B: 32 x 7 cores of 32 x 32."""
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    config = LaMDA.Config(method="lamda", rank=32)
    first = 32 * sum(LaMDA.count(config, Site("a", width, out)) for out, width in shapes)
    assert first - 32 * 32 * sum(out for out, _ in shapes) == 229_376


@pytest.mark.parametrize("method", ["adamw", "muon", "lion"])
def test_columns_rest_one_after_the_other_to_the_last_bit(method):
    run, adapter = running(method)
    frame, resting = adapter.get_buffer("A").clone(), []
    for _ in range(STEPS):
        before, core = adapter.B.detach().clone(), adapter.S.detach().clone()
        expected = min(RANK, RANK * run.step // (STEPS // 2))
        step(run)
        same = (before == adapter.B).all(0).tolist()
        assert same == [column < expected for column in range(RANK)], run.step
        assert run.step == 1 or not torch.equal(adapter.S, core)
        resting.append(run.metrics["resting_columns"])
    assert resting == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3] + [4] * 10
    assert torch.equal(adapter.get_buffer("A"), frame)


def test_the_state_of_what_rests_for_good_is_given_up():
    run, adapter = running()
    for _ in range(STEPS // 2):
        step(run)
    assert adapter.B in run.optimizer.state
    step(run)
    assert adapter.B not in run.optimizer.state and adapter.S in run.optimizer.state
    assert adapter.B.requires_grad  # so that it is saved


def test_a_run_made_longer_thaws_nothing():
    run, adapter = running(total=4 * STEPS, earlier=(STEPS, 2 * STEPS))
    run.step = STEPS // 2
    before = adapter.B.detach().clone()
    step(run)
    assert torch.equal(adapter.B, before)


def test_no_input_is_kept_for_the_backward_pass():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * RANK


def test_it_is_pefts_lora(in_peft):
    site, weight = make(dropout=0.1)
    nn.init.normal_(site.adapter.B)
    theirs = in_peft(site, weight, "LoraConfig").eval()
    layer, tensors = theirs.base_model.model[0], site.adapter.peft.tensors_of(site.adapter)
    layer.lora_A["default"].weight.data.copy_(tensors["lora_A.weight"])
    layer.lora_B["default"].weight.data.copy_(tensors["lora_B.weight"])
    x = torch.randn(5, 16)
    torch.testing.assert_close(site.eval()(x), theirs(x), atol=1e-4, rtol=1e-4)
