"""LLaVA-MoLE's own statements: one expert a token for a whole block, and what trains the router."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters.llava_mole import LLaVAMoLE
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense

HIDDEN, INNER = 16, 40
SITE = Site("model.layers.0.mlp", HIDDEN, HIDDEN, kind="mlp")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Dense(torch.randn(INNER, HIDDEN)), Dense(torch.randn(INNER, HIDDEN))
        self.down_proj, self.act_fn = Dense(torch.randn(HIDDEN, INNER) / INNER), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def config(**settings):
    return LLaVAMoLE.Config(method="llava_mole", **{"dropout": 0.0, "rank": 4, "alpha": 8.0, **settings})


def make(shared=None, **settings):
    torch.manual_seed(0)
    block, adapter = Block(), LLaVAMoLE.at(config(**settings), SITE, shared)
    adapter.fit(block)
    for name in ("B_gate", "B_up", "B_down", "router"):
        nn.init.normal_(adapter.get_parameter(name), std=0.3)
    return adapter, block


def loras(adapter, block, expert):
    """The block with the LoRA of one expert on each of its maps."""
    r, made = adapter.config.rank, copy.deepcopy(block)
    for name in ("gate", "up", "down"):
        base = getattr(block, f"{name}_proj")
        plain = LoRA(
            LoRA.Config(method="lora", rank=r, alpha=8.0), Site("s", base.in_features, base.out_features)
        )
        own = slice(expert * r, expert * r + r)
        A, B = (adapter.get_parameter(f"{factor}_{name}") for factor in "AB")
        plain.load_state_dict({"A": A[own], "B": B[:, own]})
        setattr(made, f"{name}_proj", Adapted(base, plain))
    return made


def test_every_token_goes_through_the_loras_of_its_likeliest_expert():
    adapter, block = make(experts=4)
    x = torch.randn(2, 9, HIDDEN)
    chosen = F.linear(x, adapter.router).argmax(-1)
    assert len(chosen.unique()) > 2
    every = torch.stack([loras(adapter, block, e)(x) for e in range(4)])
    expected = every.gather(0, chosen[None, ..., None].expand(1, 2, 9, HIDDEN))[0]
    torch.testing.assert_close(adapter(x, block), expected, atol=1e-4, rtol=1e-4)


def test_scaled_by_the_probability_it_is_the_lora_of_a_smaller_scale():
    adapter, block = make(scale_by_prob=True)
    x = torch.randn(1, HIDDEN)
    p = torch.softmax(F.linear(x, adapter.router), -1)
    smaller = loras(adapter, block, p.argmax().item())
    for name in ("gate_proj", "up_proj", "down_proj"):
        smaller.get_submodule(name).adapter.scaling *= p.max().item()
    torch.testing.assert_close(adapter(x, block), smaller(x), atol=1e-4, rtol=1e-4)


def test_the_balance_is_the_mean_over_blocks_of_shares_times_probabilities():
    settings = config(experts=4)
    shared, made, expected = LLaVAMoLE.shared(settings, {}, HIDDEN), [], 0.0
    for layer in range(3):
        adapter, block = make(shared, experts=4)
        nn.init.normal_(adapter.router)
        x = torch.randn(2, 5 + layer, HIDDEN)
        adapter(x, block)
        p = torch.softmax(F.linear(x, adapter.router), -1).view(-1, 4)
        counts = torch.bincount(p.argmax(-1), minlength=4)
        expected = expected + 0.01 * (counts / len(p) * p.mean(0)).sum() / 3
        made.append(adapter)
    penalties = [adapter.penalty() for adapter in made]
    assert penalties[1:] == [None, None]
    torch.testing.assert_close(penalties[0], expected)


def test_the_task_trains_the_router_only_where_probabilities_scale():
    for scaled in (False, True):
        adapter, block = make(scale_by_prob=scaled)
        adapter(torch.randn(5, HIDDEN), block).square().sum().backward(retain_graph=True)
        assert (adapter.router.grad is not None) == scaled
        adapter.penalty().backward()
        assert adapter.router.grad.abs().sum() > 0


def test_padding_goes_to_no_expert_and_is_not_counted():
    adapter, block = make()
    x, none = torch.randn(1, 6, HIDDEN), torch.zeros(0, dtype=torch.long)
    ids = torch.zeros(1, 6, dtype=torch.long)
    with computing(Batch(ids, ids, ((0, 0, 4),), none, none)):
        y, padded = adapter(x, block), adapter.penalty()
    torch.testing.assert_close(y[:, 4:], block(x[:, 4:]))
    torch.testing.assert_close(y[:, :4], adapter(x[:, :4], block))
    torch.testing.assert_close(padded, adapter.penalty())


def test_a_token_moves_one_expert_of_every_map():
    adapter, block = make(experts=4)
    x = torch.randn(1, HIDDEN)
    adapter(x, block).sum().backward()
    for name in ("gate", "up", "down"):
        moved = adapter.get_parameter(f"A_{name}").grad.view(4, -1).abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == [F.linear(x, adapter.router).argmax().item()]


def test_a_router_that_nothing_trains_is_refused():
    with pytest.raises(
        ValidationError, match="balance 0 nothing trains the router; write scale_by_prob: true"
    ):
        config(balance=0)
    assert config(balance=0, scale_by_prob=True).balance == 0


def test_a_vicuna_7b_block_trains_what_the_formula_says():
    site = Site("s", 4096, 4096, kind="mlp", inner_features=11008)
    counted = LLaVAMoLE.count(LLaVAMoLE.Config(method="llava_mole"), site)
    assert counted == 3 * (32 * 3 * (4096 + 11008) + 4096) == 4_362_240
    attention = LLaVAMoLE.count(LLaVAMoLE.Config(method="llava_mole"), Site("q", 4096, 4096))
    assert attention == 32 * 8192
