"""MoLA's own statements, the authors' loop and balance loss among them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from lrft.core.in_layer import layer_of
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.mola import MoLA
from lrft.registry.axes import QUANTIZERS

SITE = Site("model.layers.3.self_attn.q_proj", 24, 40)


def config(**settings):
    return MoLA.Config(method="mola", **{"dropout": 0.0, **settings})


def make(site=SITE, shared=None, **settings):
    torch.manual_seed(len(site.name))
    adapter = MoLA.at(config(**settings), site, shared)
    torch.nn.init.normal_(adapter.B, std=0.3)
    torch.nn.init.normal_(adapter.router)
    return adapter, QUANTIZERS.get("none")(torch.randn(site.out_features, site.in_features))


def authors(adapter, base, x):
    """The forward pass of the authors' linear layer, expert by expert: output and router logits."""
    r, k, experts = adapter.config.rank, adapter.config.top_k, adapter.config.experts
    result, flat = base(x), x.view(-1, x.shape[-1])
    logits = F.linear(flat, adapter.router)
    weights, selected = torch.topk(torch.softmax(logits, 1), k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    mask = F.one_hot(selected, experts).permute(2, 1, 0)
    final = torch.zeros(len(flat), base.out_features)
    for e in range(experts):
        idx, top_x = torch.where(mask[e])
        A, B = adapter.A[e * r : (e + 1) * r], adapter.B[:, e * r : (e + 1) * r]
        out = F.linear(F.linear(flat[top_x], A), B) * adapter.scaling
        final.index_add_(0, top_x, out * weights[top_x, idx, None])
    return result + final.view(*x.shape[:-1], -1), logits


def authors_balance(logits, experts, top_k):
    """Of one layer, over the concatenated logits of its linear maps."""
    probabilities = torch.softmax(logits, -1)
    selected = torch.topk(probabilities, top_k, dim=-1).indices.reshape(-1)
    hits = F.one_hot(selected, experts).sum(-2)
    return (hits / hits.sum() * probabilities.mean(0)).sum() * experts


def test_the_map_is_the_authors():
    adapter, base = make(experts=6)
    x = torch.randn(3, 5, 24)
    torch.testing.assert_close(adapter(x, base), authors(adapter, base, x)[0])


def test_a_layers_routers_are_balanced_as_one_as_in_the_authors_code():
    shared = MoLA.shared(config(), {}, 24)
    names = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("attn.q", "mlp.up")]
    sites = [Site(name, 24, 40) for name in names]
    made, expected = [make(site, shared, experts=4) for site in sites], 0.0
    for layer in (0, 1):
        logits = []
        for adapter, base in made[2 * layer : 2 * layer + 2]:
            x = torch.randn(2, 5, 24)
            adapter(x, base)
            logits.append(authors(adapter, base, x)[1])
        expected += 1e-3 * authors_balance(torch.cat(logits), 4, 2)
    penalties = [adapter.penalty() for adapter, _ in made]
    assert [penalty is None for penalty in penalties] == [False, True, False, True]
    torch.testing.assert_close(penalties[0] + penalties[2], expected)
    assert all(adapter.penalty() is None for adapter, _ in made)


def test_one_expert_is_lora():
    adapter, base = make(experts=1, top_k=1, rank=4, alpha=32.0)
    plain = LoRA(LoRA.Config(method="lora", rank=4, alpha=32.0), SITE)
    plain.load_state_dict({"A": adapter.A, "B": adapter.B})
    x = torch.randn(3, 24)
    torch.testing.assert_close(adapter(x, base), plain(x, base))


def test_experts_not_chosen_get_no_gradient():
    adapter, base = make(experts=6, rank=4)
    x = torch.randn(1, 24)
    adapter(x, base).sum().backward()
    chosen = torch.topk(x @ adapter.router.mT, 2).indices.flatten().tolist()
    live = adapter.B.grad.view(40, 6, 4).abs().sum((0, 2)) > 0
    assert live.nonzero().flatten().tolist() == sorted(chosen)
    assert (adapter.A.grad.view(6, -1).abs().sum(1) > 0).tolist() == live.tolist()


def test_the_order_of_the_experts_does_not_matter():
    adapter, base = make(experts=4, rank=2)
    x = torch.randn(2, 3, 24)
    before, order = adapter(x, base), torch.tensor([2, 0, 3, 1])
    rows = (order[:, None] * 2 + torch.arange(2)).flatten()
    with torch.no_grad():
        adapter.A.copy_(adapter.A[rows])
        adapter.B.copy_(adapter.B[:, rows])
        adapter.router.copy_(adapter.router[order])
    torch.testing.assert_close(adapter(x, base), before)


def test_two_experts_and_two_choices_route_densely():
    adapter, base = make(experts=2, rank=4)
    x = torch.randn(7, 24)
    weights = torch.softmax(x @ adapter.router.mT, -1)
    parts = [x @ adapter.A[e * 4 : e * 4 + 4].mT @ adapter.B[:, e * 4 : e * 4 + 4].mT for e in (0, 1)]
    expected = base(x) + adapter.scaling * sum(weights[:, e, None] * parts[e] for e in (0, 1))
    torch.testing.assert_close(adapter(x, base), expected)


def test_a_router_that_knows_nothing_costs_the_weight_of_the_loss():
    """Uniform probabilities give E sum f p = 1 whatever is chosen."""
    adapter, base = make(experts=4)
    torch.nn.init.zeros_(adapter.router)
    adapter(torch.randn(3, 5, 24), base)
    assert adapter.penalty().item() == pytest.approx(1e-3)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ValidationError, match="top_k is 2, but there are 1 experts"):
        config(experts=1)


def test_the_layer_is_read_off_the_name():
    assert layer_of("model.layers.12.mlp.up_proj") == "model.layers.12"
    assert layer_of("transformer.h.3.attn.c_attn") == "transformer.h.3"
    assert layer_of("lm_head") == "lm_head"


def test_bfloat16_activations_are_routed_as_in_float32():
    adapter, base = make(experts=6)
    x = torch.randn(50, 24).bfloat16()
    low = QUANTIZERS.get("none")(base.weight().bfloat16())
    got = adapter(x, low)
    assert got.dtype == torch.bfloat16
    expected = adapter(x.float(), QUANTIZERS.get("none")(low.weight().float()))
    torch.testing.assert_close(got.float(), expected, atol=0.15, rtol=2e-2)
