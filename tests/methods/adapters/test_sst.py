"""Sparse spectral training: exact at every change of what trains, with the gradients of its equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.frozen import Absent
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.core.settling import settle
from lrft.methods.adapters.sst import SST, chances_of
from lrft.registry.axes import OPTIMIZERS, SCHEDULES
from lrft.training import schedule

SHAPES = pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24)])


def make(out=24, width=16, rank=4, **settings):
    torch.manual_seed(0)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    adapter = SST(SST.Config(method="sst", rank=rank, **settings), Site("s", width, out, has_bias=True))
    adapter.start(weight)
    return Adapted(Absent(weight, bias), adapter), weight


def running(site, total=12, **settings):
    part = site.adapter
    infos = [ParamInfo(f"s.{n}", p, SST.roles[n], "s") for n, p in part.named_parameters()]
    config = OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.05, **settings)
    optimizer = OPTIMIZERS.get("adamw").build(infos, config)
    model = nn.Sequential()
    model.add_module("s", site)
    run = Run(
        model, infos, optimizer, schedule.build(optimizer, SCHEDULES.settings("constant"), total), total
    )
    run.callbacks = [SST.timed(part.config)]
    return run


def step(run, before_event=lambda: None):
    x = torch.randn(
        8, run.model.s.adapter.site.in_features, generator=torch.Generator().manual_seed(run.step)
    )
    run.model(x).square().mean().backward()
    run.optimizer.step()
    settle(run.settling, run.optimizer)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.schedule.step()
    before_event()
    run.fire("after_step")


@SHAPES
def test_it_starts_as_the_weight_itself_and_a_draw_or_decomposition_leaves_it(out, width):
    site, weight = make(out, width)
    part = site.adapter
    torch.testing.assert_close(part.own_weight(), weight, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    moved, before = part.own_weight().detach(), part.drawn.clone()
    assert not torch.allclose(moved, weight, atol=0.1)
    for seed in range(3):
        part.draw(torch.Generator().manual_seed(seed))
        torch.testing.assert_close(part.own_weight(), moved, rtol=1e-5, atol=1e-5)
    assert not torch.equal(part.drawn, before)
    part.decompose()
    torch.testing.assert_close(part.own_weight(), moved, rtol=1e-4, atol=1e-4)
    part._put_back()
    eye = torch.eye(min(out, width))
    torch.testing.assert_close(part.U.mT @ part.U, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(part.V @ part.V.mT, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(part.A, part.V[part.drawn], rtol=0, atol=0)


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_the_equations(out, width, dtype):
    site, _ = make(out, width)
    part, generator = site.adapter, torch.Generator().manual_seed(1)
    x = torch.randn(3, 7, width, generator=generator).to(dtype).requires_grad_()
    D = torch.randn(3, 7, out, generator=generator).to(dtype)
    site(x).backward(D)
    G = D.float().flatten(0, 1).mT @ x.detach().float().flatten(0, 1)
    U, V, drawn = part.U.clone(), part.V.clone(), part.drawn
    U[:, drawn], V[drawn] = part.B.detach(), part.A.detach()
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 0.5}
    torch.testing.assert_close(part.S.grad, torch.einsum("ok,oi,ki->k", U, G, V), **close)
    torch.testing.assert_close(part.B.grad, G @ part.A.detach().mT, **close)
    torch.testing.assert_close(part.A.grad, part.B.detach().mT @ G, **close)
    torch.testing.assert_close(x.grad.float(), D.float() @ (U * part.S.detach()) @ V, **close)


def test_the_forward_pass_keeps_x_and_nothing_else_of_a_token():
    site, _ = make()
    held = {t.data_ptr() for t in (*site.adapter.parameters(), *site.adapter.buffers())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(torch.randn(100, 16))
    assert sum(t.nbytes for t in kept if t.data_ptr() not in held) == 4 * 100 * 16


def test_between_two_draws_the_drawn_vectors_alone_move_and_stay_of_unit_length():
    site, _ = make(every=100)
    part, run = site.adapter, running(site)
    others = [i for i in range(16) if i not in part.drawn]
    U, V, A, B = (t.detach().clone() for t in (part.U, part.V, part.A, part.B))
    run.optimizer.param_groups[0]["lr"] = 0.2  # far enough for the smallest values to meet 0
    run.schedule.base_lrs = [0.2]
    for _ in range(4):
        step(run)
        assert part.S.min() >= 0
        torch.testing.assert_close(part.A.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(part.B.norm(dim=0), torch.ones(4))
    assert (part.S == 0).any(), "the clip at 0 was not reached, so nothing of it was shown"
    part._put_back()
    assert torch.equal(part.U[:, others], U[:, others]) and torch.equal(part.V[others], V[others])
    assert (part.A != A).any(dim=1).all() and (part.B != B).any(dim=0).all()


def test_a_draw_resets_the_moments_of_the_vectors_and_a_decomposition_those_of_the_values_too():
    site, _ = make(every=2, rounds=2, warmup=1)
    part, run = site.adapter, running(site)
    states, rates, y = [], [], {}
    x = torch.randn(5, 16)
    for _ in range(5):
        rates.append(run.optimizer.param_groups[0]["lr"])
        step(run, lambda: y.update(before=run.model(x)))
        torch.testing.assert_close(run.model(x), y["before"], rtol=1e-4, atol=1e-4)
        states.append({name for name, p in part.named_parameters() if p in run.optimizer.state})
    assert states == [{"A", "B", "S"}, {"S"}, {"A", "B", "S"}, set(), {"A", "B", "S"}]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.05, 0.025])


def test_steps_that_are_added_later_change_none_of_those_before():
    """Nothing is drawn after the last one, also where the run was made longer since."""
    site, _ = make(every=2)
    part, run = site.adapter, running(site)
    run.earlier_ends, held = (4,), []
    for _ in range(6):
        step(run)
        held.append(sorted(map(int, part.drawn)))
    assert held[0] != held[1] == held[2] == held[3] == held[4] != held[5]


def test_draws_follow_the_chances_without_replacement():
    S = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(chances_of(S, 0.5), 0.1 + S / 16)
    torch.testing.assert_close(chances_of(S, 0.0), S / 8)
    torch.testing.assert_close(chances_of(0 * S, 0.3), torch.full((5,), 0.2))
    site, _ = make(rank=2, uniform_share=0.0)
    part, counts = site.adapter, torch.zeros(16)
    with torch.no_grad():
        part.S.copy_(torch.tensor([8.0] + [1.0] * 8 + [0.0] * 7))
    for seed in range(300):
        part.draw(torch.Generator().manual_seed(seed))
        assert len(set(part.drawn.tolist())) == 2
        counts[part.drawn] += 1
    assert counts[0] > 210 and counts[1:9].min() > 10 and not counts[9:].any()


def test_the_share_that_trains_is_the_published_one():
    """18.7 % of LLaMA-1.3B at rank 128: 24 layers of four maps 2048 x 2048 and three of 2048 x 5461."""
    config = SST.Config(method="sst", rank=128)
    square, wide = (SST.count(config, Site("s", 2048, out)) for out in (2048, 5461))
    assert SST.count(config, Site("s", 5461, 2048)) == wide == 128 * (2048 + 5461) + 2048
    whole = 24 * (4 * square + 3 * wide) + 2 * 32_000 * 2048 + 49 * 2048
    assert round(100 * whole / 1_339_082_752, 1) == 18.7


def test_more_vectors_than_there_are_are_refused():
    with pytest.raises(
        ValueError, match="rank 17 is more than the weight has singular vectors; use at most 16"
    ):
        make(rank=17)
