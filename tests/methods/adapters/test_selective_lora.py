"""Selective LoRA: open it is LoRA, closed it is the base, and its score has the gradient of the step it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.selective_lora import SelectiveLoRA
from lrft.registry.axes import QUANTIZERS


def adapted(cls=SelectiveLoRA, **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(10, 12), None, QUANTIZERS.settings("none"))
    found = Adapted(base, cls(cls.Config(rank=4, alpha=6.0, **settings), Site("a", 12, 10)))
    nn.init.normal_(found.adapter.B)
    return found


def set_score(site, value):
    with torch.no_grad():
        site.adapter.score.fill_(value)


def test_an_open_site_is_a_lora_and_a_closed_one_exactly_the_base():
    site, lora, x = adapted(), adapted(LoRA), torch.randn(5, 12)
    for score in (0.15, 0.1, 7.0):
        set_score(site, score)
        assert site.adapter.is_open and torch.equal(site(x), lora(x))
        assert torch.equal(site.merged_weight(), lora.merged_weight())
    for score in (0.0999, 0.0, -3.0):
        set_score(site, score)
        assert not site.adapter.is_open and torch.equal(site(x), site.base(x))
        assert torch.equal(site.merged_weight(), site.base.weight())
    assert SelectiveLoRA.count(site.adapter.config, site.adapter.site) == 4 * 22 + 1


@pytest.mark.parametrize("score", [0.5, -0.5])
def test_the_score_has_the_gradient_of_its_switch_open_or_closed(score):
    """dL/du is dL/dg at y = base + g LoRA(x), by hand; the factors of a closed site have none."""
    site, x = adapted(), torch.randn(5, 12)
    set_score(site, score)
    weights = torch.randn(5, 10)
    (site(x) * weights).sum().backward()
    update = 6 / 4 * x @ site.adapter.A.T @ site.adapter.B.T
    torch.testing.assert_close(site.adapter.score.grad, (update * weights).sum().detach()[None])
    for factor in (site.adapter.A, site.adapter.B):
        assert bool(factor.grad.any()) == (score > 0.1)


def run_of(sites, steps=30, lr=0.01, **settings):
    model = nn.Sequential(*(Adapted(s.base, s.adapter) for s in (adapted(**settings) for _ in range(sites))))
    infos = [ParamInfo(name, param, "lora_A") for name, param in model.named_parameters()]
    run = Run(model, infos, torch.optim.Adam([info.param for info in infos], lr=lr), None, steps)
    run.callbacks = [SelectiveLoRA.timed(model[0].adapter.config)]
    run.fire("start")
    return run


def test_the_penalty_is_the_mean_size_of_the_scores_and_waits_its_share_of_the_run():
    run = run_of(3, strength=2.0, penalty_from=0.1)
    sizes = []
    for value, (_, site) in zip((0.15, -0.3, 0.6), run.adapted(), strict=True):
        set_score(site, value)
    for step in range(30):
        run.step = step
        run.fire("before_step")
        penalties = [adapter.penalty() for adapter in run.penalized]
        sizes.append(None if penalties[0] is None else sum(penalties).item())
    assert sizes[:3] == [None] * 3 and sizes[3:] == [pytest.approx(2.0 * 1.05 / 3)] * 27


def test_a_strong_penalty_closes_every_site_and_the_task_keeps_those_it_needs():
    for strength, expected in ((100.0, []), (0.0, ["a", "a"])):
        run = run_of(2, strength=strength, penalty_from=0.0)
        while run.step < 30:
            run.fire("before_step")
            penalties = [p for p in (adapter.penalty() for adapter in run.penalized) if p is not None]
            loss = sum(
                -1e-3 * adapter.score.sum() for adapter in run.penalized
            )  # a task that wants them open
            (loss + sum(penalties, torch.zeros(()))).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.step += 1
        run.fire("finish")
        assert run.summary["active"] == expected


def test_a_closed_site_is_exported_as_zeros_of_rank_one():
    site = adapted()
    form = SelectiveLoRA.peft_form()
    assert form.keys_of(site.adapter)["r"] == 4 and form.tensors(site.adapter, None)["A"] is site.adapter.A
    set_score(site, 0.0)
    tensors = form.tensors(site.adapter, None)
    assert form.keys_of(site.adapter)["r"] == 1
    assert tensors["A"].shape == (1, 12) and tensors["B"].shape == (10, 1) and not tensors["B"].any()
