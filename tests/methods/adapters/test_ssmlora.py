"""SSMLoRA's own statements: whose state a layer reads, and that it is of one token and one pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.ssmlora import SSMLoRA
from lrft.methods.quant.none import Dense
from lrft.registry.errors import RecipeError

WIDTH, RANK = 16, 4


def named(*names):
    return {name: Site(name, WIDTH, WIDTH) for name in names}


def make(layers=3, **settings):
    """Layers of two kinds, one after the other."""
    torch.manual_seed(0)
    config = SSMLoRA.Config(method="ssmlora", **{"rank": RANK, "alpha": 2.0, "dropout": 0.0, **settings})
    sites = named(*(f"layers.{n}.{kind}" for n in range(layers) for kind in ("q_proj", "o_proj")))
    shared = SSMLoRA.shared(config, sites, WIDTH)
    made = []
    for site in sites.values():
        adapter = SSMLoRA.at(config, site, shared)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.5)
        made.append(Adapted(Dense(torch.randn(WIDTH, WIDTH) / 4), adapter))
    return nn.Sequential(*made)


def reference(model, x):
    """The recursion written out, token by token of a list, the states of each kind in a dictionary."""
    rows = []
    for token in x.reshape(-1, WIDTH):
        states, value = {}, token
        for site in model:
            adapter, kind = site.adapter, site.adapter.site.name[-6:]
            h, u = states.get(kind, torch.zeros(RANK)), adapter.A @ value
            z = h @ adapter.R[:RANK] + u @ adapter.R[RANK:] + h
            state = (z - z.min()) / (z.max() - z.min() + 1e-8)
            states[kind] = state.detach()
            term = adapter.B @ (u + torch.where(state > 0, state, 0.01 * state))
            value = site.base.weight() @ value + 2.0 * term
        rows.append(value)
    return torch.stack(rows).view(x.shape)


def test_output_and_gradients_are_those_of_the_recursion():
    model = make()
    x, seed = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    got, expected = model(x), reference(model, x)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
    mine, theirs = (torch.autograd.grad((y * seed).sum(), list(model.parameters())) for y in (got, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


def test_a_layer_reads_the_state_of_the_layer_before_of_its_kind():
    model = make()
    x = torch.randn(5, WIDTH)
    y = model(x)
    changed = copy.deepcopy(model)
    nn.init.normal_(changed[0].adapter.R)
    with torch.no_grad():
        changed[0].adapter.B.zero_()
        model[0].adapter.B.zero_()
    first, second = model(x), changed(x)
    assert not torch.equal(y, first) and not torch.equal(first, second)  # through its state alone
    assert torch.equal(model[1](x), changed[1](x))  # o_proj of that layer is of another kind


def test_no_state_crosses_tokens_documents_or_passes():
    model = make().eval()
    x = torch.randn(2, 6, WIDTH)
    whole = model(x)
    model(torch.randn(4, 9, WIDTH))
    pieces = torch.cat([model(x[:, :4]), model(x[:, 4:])], dim=1)  # other documents, or later tokens
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x[1:]), whole[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputed_layers_read_what_they_read_before(dropout):
    model = make(dropout=dropout)
    x, gradients = torch.randn(5, WIDTH, requires_grad=True), []
    for again in (False, True):
        torch.manual_seed(1)
        y = x
        for site in model:
            y = checkpoint(site, y, use_reentrant=False) if again else site(y)
        gradients.append(torch.autograd.grad(y.square().sum(), list(model.parameters())))
    torch.testing.assert_close(*gradients)


def test_dropout_acts_on_what_the_term_reads_of_the_state_alone():
    torch.manual_seed(0)
    plain, dropping = make(1)[0], make(1, dropout=0.5)[0]
    x = torch.randn(400, WIDTH)
    assert torch.equal(plain.base(x), dropping.base(x))
    plain(x), dropping(x)
    state = plain.adapter.own.value
    assert torch.equal(dropping.adapter.own.value, state)  # what is handed on is whole
    u = x @ dropping.adapter.A.T
    seen = (dropping(x) - dropping.base(x)) @ torch.linalg.pinv(dropping.adapter.B).T / 2.0 - u
    kept = torch.isclose(seen, 2 * state, atol=1e-3)
    assert (kept | torch.isclose(seen, torch.zeros(()), atol=1e-3)).all()
    assert 0.4 < kept[state > 0.1].float().mean() < 0.6


def test_at_the_start_it_is_a_lora_without_division_by_the_rank():
    site = make(1)[0]
    nn.init.zeros_(site.adapter.R)
    x = torch.randn(5, WIDTH)
    change = 2.0 * site.adapter.B @ site.adapter.A
    torch.testing.assert_close(site(x), F.linear(x, site.base.weight() + change), atol=1e-4, rtol=1e-4)


def test_layers_that_may_see_other_tokens_are_refused():
    config = SSMLoRA.Config(method="ssmlora")
    experts = named("layers.0.mlp.experts.0.up_proj", "layers.0.mlp.experts.1.up_proj")
    with pytest.raises(RecipeError, match=r"experts\.1\.up_proj are of one layer and kind"):
        SSMLoRA.shared(config, experts, WIDTH)
    model = make(2)
    with pytest.raises(
        RecipeError, match=r"layers\.1\.q_proj does not see the tokens that layers\.0\.q_proj saw"
    ):
        model[2](torch.randn(5, WIDTH))


def test_the_count_has_the_two_square_matrices():
    site = make(1)[0]
    assert SSMLoRA.count(site.adapter.config, site.adapter.site) == 4 * (16 + 16) + 2 * 4 * 4
