"""LoRA with one frozen factor: what it is, that it stays, and what is not kept for it."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.asymmetry import Asymmetry
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.lora_fa import LoRAFA
from lrft.methods.quant.none import Dense

FROZEN = ("orthonormal", "kaiming", "singular", "last_singular")


def make(rank=4, width=24, out=40, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = Asymmetry(Asymmetry.Config(method="asymmetry", rank=rank, **settings), Site("a", width, out))
    adapter.start(weight)
    return Adapted(Dense(weight), adapter), weight


def test_the_published_count_of_half_a_lora():
    """RoBERTa-large, queries and values at rank 8; with A alone it is the inputs that count."""
    config = Asymmetry.Config(method="asymmetry")
    assert 48 * Asymmetry.count(config, Site("a", 1024, 1024)) == 393_216
    other = config.model_copy(update={"train": "A"})
    assert (
        Asymmetry.count(other, Site("a", 30, 50)) == 240 and Asymmetry.count(config, Site("a", 30, 50)) == 400
    )


@pytest.mark.parametrize("frozen", ["orthonormal", "singular", "last_singular"])
def test_frozen_factors_are_orthonormal(frozen):
    A = make(frozen=frozen)[0].adapter.A
    torch.testing.assert_close(A @ A.mT, torch.eye(4), atol=1e-5, rtol=0)
    B = make(frozen=frozen, train="A")[0].adapter.B
    torch.testing.assert_close(B.mT @ B, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frozen", "place"), [("singular", 0), ("last_singular", 20)])
def test_singular_factors_are_where_the_weight_is_as_large_as_its_singular_values(frozen, place):
    site, weight = make(frozen=frozen)
    S = torch.linalg.svdvals(weight)[place : place + 4]
    torch.testing.assert_close((weight @ site.adapter.A.mT).norm(dim=0), S, atol=1e-4, rtol=1e-4)
    B = make(frozen=frozen, train="A")[0].adapter.B
    torch.testing.assert_close((weight.mT @ B).norm(dim=0), S, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("train", ["A", "B"])
def test_one_factor_starts_at_0_and_moves_and_the_other_stays_bit_for_bit(frozen, train):
    site, weight = make(frozen=frozen, train=train)
    adapter = site.adapter
    moving, still = (adapter.A, adapter.B) if train == "A" else (adapter.B, adapter.A)
    before = still.detach().clone()
    assert not moving.any() and before.any() and torch.equal(site.merged_weight(), weight)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        site(torch.randn(6, 24)).square().sum().backward()
        optimizer.step()
    assert moving.abs().min() > 0 and torch.equal(still, before) and still.grad is None


def test_with_a_kaiming_factor_it_is_ffa_lora_which_is_lora_fa():
    ours = make(frozen="kaiming", alpha=8.0)[0].adapter
    torch.manual_seed(0)
    torch.randn(40, 24)
    theirs = LoRAFA(LoRAFA.Config(method="lora_fa", rank=4, alpha=8.0), Site("a", 24, 40))
    assert torch.equal(ours.A, theirs.A) and not ours.B.any() and ours.scaling == theirs.scaling
    assert Asymmetry.aliases["ffa_lora ffa"] == "adapter: {method: asymmetry, frozen: kaiming}"


@pytest.mark.parametrize("train", ["A", "B"])
def test_it_is_lora_with_those_factors_and_so_for_peft(in_peft, train):
    site, weight = make(train=train)
    with torch.no_grad():
        (site.adapter.A if train == "A" else site.adapter.B).normal_()
    lora = LoRA(LoRA.Config(method="lora", rank=4, alpha=16.0), Site("a", 24, 40))
    lora.load_state_dict(site.adapter.state_dict())
    theirs, x = in_peft(site, weight, "LoraConfig"), torch.randn(5, 24)
    theirs.base_model.model[0].lora_A["default"].weight.data.copy_(site.adapter.A)
    theirs.base_model.model[0].lora_B["default"].weight.data.copy_(site.adapter.B)
    torch.testing.assert_close(site(x), Adapted(site.base, lora)(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-4, rtol=1e-5)


def test_of_an_input_only_what_the_trained_factor_meets_is_kept():
    x = torch.randn(100, 24, requires_grad=True)
    for train, numbers in (("B", 100 * 4), ("A", 100 * 24)):
        site, saved = make(train=train)[0], []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            site(x).sum().backward()
        assert sum(t.numel() for t in saved if t.shape and t.shape[0] == 100) == numbers


def test_a_restart_draws_the_frozen_factor_anew_and_changes_nothing():
    adapter = make()[0].adapter
    before = adapter.A.detach().clone()
    torch.nn.init.normal_(adapter.B)
    adapter.reset()
    assert not torch.equal(adapter.A, before) and not adapter.B.any() and not adapter.A.requires_grad


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(ValueError, match="rank 25 is more than any change of the weight has; use at most 24"):
        make(rank=25)
