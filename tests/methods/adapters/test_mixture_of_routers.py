"""MoR's own statements: joint scores of sub-routers, and MoLA where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.params import Site
from lrft.methods.adapters.mixture_of_routers import MixtureOfRouters
from lrft.methods.adapters.mola import MoLA
from lrft.methods.quant.none import Dense

SITE = Site("model.layers.3.self_attn.q_proj", 24, 40)


def config(**settings):
    return MixtureOfRouters.Config(method="mixture_of_routers", **{"dropout": 0.0, **settings})


def make(**settings):
    torch.manual_seed(0)
    adapter = MixtureOfRouters.at(config(**settings), SITE)
    for parameter in (adapter.B, adapter.router):
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter, Dense(torch.randn(40, 24))


def routers_of(adapter):
    """The sub-routers (m, E, in) and the main one (m, in)."""
    m, experts = adapter.config.routers, adapter.config.experts
    return adapter.router[: m * experts].view(m, experts, -1), adapter.router[m * experts :]


def by_token(adapter, base, x):
    """The formula, one token and one expert at a time: outputs, and the joint scores."""
    config, outputs, scores = adapter.config, [], []
    (subs, main), r = routers_of(adapter), config.rank
    for token in x:
        weights = torch.softmax(main @ token, 0)
        joint = torch.zeros(config.experts)
        for weight, sub in zip(weights, subs, strict=True):
            joint = joint + weight * torch.softmax(sub @ token, 0)
        best = joint.argsort(descending=True)[: config.top_k]
        y = base(token)
        for e in best:
            A, B = adapter.A[e * r : (e + 1) * r], adapter.B[:, e * r : (e + 1) * r]
            y = y + adapter.scaling * joint[e] / joint[best].sum() * (B @ (A @ token))
        outputs.append(y)
        scores.append(joint)
    return torch.stack(outputs), torch.stack(scores)


def test_the_map_and_its_balance_are_the_formula_token_by_token():
    adapter, base = make(experts=5, routers=3, top_k=2, rank=3)
    x = torch.randn(9, 24)
    expected, scores = by_token(adapter, base, x)
    torch.testing.assert_close(adapter(x, base), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.sum(1), torch.ones(9))
    f = F.one_hot(scores.topk(2).indices, 5).sum((0, 1)) / 18
    torch.testing.assert_close(adapter.penalty(), 1e-3 * 5 * (f * scores.mean(0)).sum())


def test_one_sub_router_is_mola():
    adapter, base = make(experts=4, routers=1)
    plain = MoLA(MoLA.Config(method="mola", experts=4, dropout=0.0), SITE)
    plain.load_state_dict({"A": adapter.A, "B": adapter.B, "router": routers_of(adapter)[0][0]})
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(adapter(x, base), plain(x, base))
    torch.testing.assert_close(adapter.penalty(), plain.penalty())


def test_a_sub_router_that_the_main_one_trusts_decides_alone():
    adapter, base = make(experts=4, routers=2)
    x, (subs, main) = torch.rand(7, 24) + 0.1, routers_of(adapter)
    with torch.no_grad():
        main[0], main[1] = -50.0, 50.0
    alone = MoLA(MoLA.Config(method="mola", experts=4, dropout=0.0), SITE)
    alone.load_state_dict({"A": adapter.A, "B": adapter.B, "router": subs[1]})
    torch.testing.assert_close(adapter(x, base), alone(x, base))


def test_the_order_of_sub_routers_does_not_matter():
    adapter, base = make(experts=4, routers=3)
    x = torch.randn(2, 3, 24)
    before, order, (subs, main) = adapter(x, base), torch.tensor([2, 0, 1]), routers_of(adapter)
    with torch.no_grad():
        subs.copy_(subs[order])
        main.copy_(main[order])
    torch.testing.assert_close(adapter(x, base), before)


def test_experts_not_chosen_get_no_gradient_and_all_routers_do():
    adapter, base = make(experts=6, routers=2, rank=2)
    adapter(torch.randn(1, 24), base).sum().backward()
    assert (adapter.B.grad.view(40, 6, 2).abs().sum((0, 2)) > 0).sum() == 2
    assert (adapter.router.grad.abs().sum(1) > 0).all()


def test_all_routers_keep_the_input_once():
    adapter, base = make(experts=4, routers=8, rank=1)
    x, kept = torch.randn(1, 300, 24).bfloat16(), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    low = Dense(base.weight().bfloat16())
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        adapter(x, low)
    assert x.untyped_storage().data_ptr() in kept
    assert 300 * 24 * 4 not in kept.values()  # no float32 copy of it


@pytest.mark.parametrize("routers", [1, 2, 5])
def test_counts_are_those_of_mola_and_the_further_routers(routers):
    settings = config(experts=8, routers=routers)
    site = Site("s", 4096, 11008)
    plain = MoLA.count(MoLA.Config(method="mola", experts=8), site)
    assert MixtureOfRouters.count(settings, site) == plain + ((routers - 1) * 8 + routers) * 4096
