"""FlyLoRA's own statements: what is chosen, what is balanced, and what has a gradient."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters.flylora import FlyLoRA
from lrft.methods.quant.none import Dense


def make(out=24, width=16, **settings):
    torch.manual_seed(0)
    config = FlyLoRA.Config(method="flylora", **{"rank": 8, "top_k": 3, "balance": 0.125, **settings})
    adapter = FlyLoRA(config, Site("a", width, out))
    nn.init.normal_(adapter.B)
    return Adapted(Dense(torch.randn(out, width)), adapter)


def one_step(site, *passes, processes=1):
    """The steps of a run around some passes; `processes` of them did the same."""

    run = SimpleNamespace(adapted=lambda: iter([("a", site)]), summed=lambda counts: processes * counts)
    method = FlyLoRA.timed(site.adapter.config)
    method.before_step(run)
    for x in passes:
        site(x)
    method.after_step(run)


def test_a_token_uses_the_components_it_answers_most_strongly_in_and_d_is_no_part_of_the_value():
    site = make()
    adapter, x = site.adapter, torch.randn(7, 16)
    adapter.get_buffer("d").copy_(torch.randn(8))
    for token, y in zip(x, site(x) - site.base(x), strict=True):
        h = adapter.get_buffer("A") @ token
        best = (h + adapter.get_buffer("d")).abs().argsort(descending=True)[:3]
        expected = 64 / 8 * adapter.B[:, best] @ h[best]
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_rows_of_the_projection_hold_their_share_of_entries():
    A = make(width=4000, rank=16, top_k=3).adapter.get_buffer("A")
    assert A.ne(0).sum(1).tolist() == [4000 * 3 // 16] * 16
    torch.testing.assert_close(A[A != 0].std(), torch.tensor(1 / 16), atol=0.002, rtol=0)
    assert not torch.equal(A[0] != 0, A[1] != 0)
    uneven = make(width=90, rank=10, top_k=7).adapter.A  # int(90 * (7 / 10)) in the authors' code
    assert (uneven != 0).sum(1).tolist() == [62] * 10


def test_components_that_were_chosen_too_often_are_chosen_less():
    site = make()
    x, adapter = torch.randn(40, 16), site.adapter
    h = x @ adapter.get_buffer("A").T
    counts = torch.zeros(8).scatter_add_(0, h.abs().topk(3).indices.flatten(), torch.ones(120))
    one_step(site, x[:10], x[10:])
    expected = 0.125 * torch.sign(counts.mean() - counts)
    assert torch.equal(adapter.get_buffer("d"), expected) and expected.unique().numel() > 1
    before = adapter.get_buffer("d").clone()
    site.eval()(x)
    one_step(site.eval(), x)  # nothing was counted in evaluation
    assert torch.equal(adapter.get_buffer("d"), before)


def test_padding_is_not_counted():
    site = make()
    x = torch.randn(1, 6, 16)
    batch = Batch(torch.zeros(1, 6), torch.zeros(1, 6), ((0, 0, 4),), torch.zeros(0), torch.zeros(0))
    with computing(batch):
        site(x)
    padded = site.adapter.get_buffer("counts").clone()
    site.adapter.get_buffer("counts").zero_()
    site(x[:, :4])
    assert torch.equal(site.adapter.get_buffer("counts"), padded) and padded.sum() == 12


def test_processes_move_alike_by_the_sum_of_their_counts():
    alone, together = make(), make()
    x = torch.randn(40, 16)
    one_step(alone, x, x)
    one_step(together, x, processes=2)
    assert torch.equal(alone.adapter.get_buffer("d"), together.adapter.get_buffer("d"))


def test_gradients_reach_what_was_chosen_and_the_input():
    site = make()
    x = torch.randn(1, 16, requires_grad=True)
    site(x).square().sum().backward()
    assert site.adapter.B.grad.any(0).sum() == 3
    through = torch.autograd.grad((site(x) - site.base(x)).sum(), x)[0]
    assert through.any()  # through the projection, beside the base


def test_with_every_component_chosen_it_is_a_lora_with_a_frozen_sparse_factor():
    site = make(top_k=8)
    A, x = site.adapter.get_buffer("A"), torch.randn(5, 16)
    assert A.all()
    torch.testing.assert_close(
        site(x), site.base(x) + 8 * F.linear(x @ A.T, site.adapter.B), atol=1e-4, rtol=1e-4
    )


def test_a_token_of_llama_3_1_8b_uses_the_papers_share():
    config = FlyLoRA.Config(method="flylora")
    outs = [4096, 4096, 1024, 1024, 14336, 14336, 4096]
    trained = 32 * sum(FlyLoRA.count(config, Site("a", 4096, out)) for out in outs)
    assert trained == 44_040_192
    used = trained * config.top_k // config.rank
    assert abs(100 * used / 8_030_261_248 - 0.13) < 0.01


def test_no_input_is_kept_for_the_backward_pass():
    site = make(width=64)
    x, kept = torch.randn(1000, 64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 8
