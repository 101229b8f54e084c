"""COLA's own statements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.methods.restart.cola import COLA
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.training import schedule


def make(links, total=12, method="linear", warmup=0):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(40, 32))
    site = Adapted(base, LoRA(LoRA.Config(method="lora", rank=3, dropout=0.2), Site("s", 32, 40)))
    infos = [ParamInfo(f"s.{k}", site.adapter.get_parameter(k), f"lora_{k}", "s") for k in "AB"]
    optimizer = OPTIMIZERS.get("adamw").build(infos, OPTIMIZERS.declared("adamw").config(lr=0.01))
    rates = schedule.build(optimizer, SCHEDULES.settings(method, warmup_steps=warmup), total)
    run = Run(nn.ModuleDict({"s": site}), infos, optimizer, rates, total)
    if links:
        run.callbacks = [COLA(COLA.Config(method="cola", links=links))]
    return run


def train(run, count=None):
    """The run, and the rate of each step."""
    rates, site = [], run.model["s"]
    run.fire("start")
    for _ in range(run.total_steps if count is None else count):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.metrics = {}
        run.seed_step()
        site(torch.randn(8, 32)).square().mean().backward()
        run.optimizer.step()
        run.step += 1
        run.schedule.step()
        run.fire("after_step")
        run.optimizer.zero_grad(set_to_none=True)
    return run, rates


@pytest.mark.parametrize("method", ["linear", "cosine", "constant"])
def test_a_chain_of_one_link_is_lora_bit_for_bit(method):
    (lora, plain), (cola, rates) = (train(make(links, method=method, warmup=4)) for links in (0, 1))
    assert rates == plain
    for a, b in zip(lora.parameters, cola.parameters, strict=True):
        assert torch.equal(a.param, b.param)
    assert cola.model["s"].base.change() is None


@pytest.mark.parametrize("method", ["linear", "cosine"])
def test_every_link_runs_through_the_whole_schedule(method):
    _, whole = train(make(0, total=4, method=method, warmup=1))
    _, rates = train(make(3, total=12, method=method, warmup=3))
    assert rates[:4] == rates[4:8] == rates[8:]
    assert rates[1:4] == pytest.approx(
        whole[1:]
    )  # after the warm-up it is the schedule of a run of four steps


def test_unequal_links_end_where_the_schedule_ends():
    _, rates = train(make(2, total=5))
    assert rates == pytest.approx([0.01 * f for f in (1, 2 / 3, 1 / 3, 1, 1 / 2)])


def test_a_new_link_has_a_new_optimizer():
    run, _ = train(make(3), 4)
    assert not run.optimizer.state
    assert run.metrics["restarts"] == 1
    assert not run.model["s"].adapter.B.any()


def test_the_links_together_are_the_model():
    """The factors of the tied links, one under the other, and the last adapter reproduce the merged weight."""
    run, _ = train(make(3))
    site = run.model["s"]
    assert site.base.A.shape == (6, 32) and site.base.B.shape == (40, 6)
    A, B = site.adapter.factors()
    chain = torch.cat([site.base.B, B], dim=1) @ torch.cat([site.base.A, A])
    torch.testing.assert_close(site.base.original.weight() + chain, site.merged_weight())


def test_the_chain_ends_with_a_live_link():
    run, _ = train(make(2))
    assert run.model["s"].adapter.B.any()
    assert run.callbacks[0].state_dict() == {"knots": 1}
