"""Runs of one adapted map on drawn rows, and what is asked of methods whose training sees another weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.training import schedule
from lrft.training.flatten import flatten, unflatten

OUT, IN, R, S = 24, 16, 4, 2.0
LR = 0.01
Made = tuple[Run, Adapted]


def make_run(
    method: str, storage: str, optimizer: str, moving: Mapping[str, float], seed: int, **settings: object
) -> Made:
    """A run of 99 steps, and its one site; `moving` are settings of the optimizer."""
    torch.manual_seed(0)
    base = QUANTIZERS.get(storage)(torch.randn(OUT, IN) / 4)
    config = ADAPTERS.declared(method).config(method=method, rank=R, alpha=S * R, **settings)
    part = ADAPTERS.get(method)(config, Site("s", IN, OUT))
    infos = [ParamInfo(f"s.{n}", p, part.roles[n], "s") for n, p in part.named_parameters()]
    made = OPTIMIZERS.get(optimizer).build(infos, OPTIMIZERS.declared(optimizer).config(lr=LR, **moving))
    model, site = nn.Sequential(), Adapted(base, part)
    model.add_module("s", site)
    run = Run(model, infos, made, schedule.build(made, SCHEDULES.settings("constant"), 99), 99, seed=seed)
    timed = type(part).timed(config)
    run.callbacks = [] if timed is None else [timed]
    return run, site


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, IN, generator=generator), torch.randn(8, OUT, generator=generator)


def step(run: Run, rows: Sequence[slice] = (slice(None),)) -> None:
    run.fire("before_step")
    x, y = batch(run.step)
    for part in rows:
        ((run.model(x[part]) - y[part]).square().sum() / y.numel()).backward()
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


def check_scores_are_those_of_lora(run: Run, site: Adapted) -> None:
    """After three steps the base is as it was, the merged weight is what is scored, and training sees another."""
    before = site.base.weight().clone()
    for _ in range(3):
        step(run)
    assert torch.equal(site.base.weight(), before)
    x, _ = batch(0)
    training = run.model(x)
    scored = run.model.eval()(x)
    torch.testing.assert_close(scored, x @ site.merged_weight().T, rtol=1e-4, atol=1e-4)
    assert (training - scored).abs().max() > 0.1


def check_resumed_is_unbroken(make: Callable[[], Made]) -> None:
    """Three steps, what a checkpoint holds, and three more are six."""
    whole, site = make()
    for _ in range(6):
        step(whole)
    first, part = make()
    for _ in range(3):
        step(first)
    second, other = make()
    other.adapter.load_state_dict(part.adapter.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.callbacks[0].load_state_dict(unflatten(*flatten(first.callbacks[0].state_dict())))
    second.step = 3
    assert set(part.adapter.state_dict()) == {"A", "B"}
    for _ in range(3):
        step(second)
    assert torch.equal(site.adapter.A, other.adapter.A) and torch.equal(site.adapter.B, other.adapter.B)


def kept_bytes(run: Run, site: Adapted) -> int:
    """Of a pass over 100 tokens, beside the parameters and the weight."""
    held = {t.data_ptr() for t in (*site.parameters(), *site.buffers())}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run.model(torch.randn(100, IN))
    return sum(t.nbytes for t in saved if t.data_ptr() not in held)
