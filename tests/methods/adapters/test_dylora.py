"""DyLoRA's own statements."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.dylora import DyLoRA
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import QUANTIZERS

SITE = Site("layers.0.q_proj", 24, 40, has_bias=True)
RANK, ALPHA = 6, 12.0
X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
SEED = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))


def make(**settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(40, 24), torch.randn(40))
    adapter = DyLoRA(DyLoRA.Config(method="dylora", rank=RANK, alpha=ALPHA, **settings), SITE)
    torch.nn.init.normal_(adapter.B)
    return adapter, base


def lora_of(adapter, rank, rslora=False):
    """A LoRA of the leading directions, with alpha / rank."""
    lora = LoRA(LoRA.Config(method="lora", rank=rank, alpha=ALPHA, rslora=rslora), SITE)
    lora.load_state_dict({"A": adapter.A[:rank].detach(), "B": adapter.B[:, :rank].detach()})
    return lora


def reference(adapter, base, b, frozen):
    """The authors' forward: both factors truncated and times sqrt(r / (b + 1)), on top of alpha / r."""

    def dynamic(inputs):
        if frozen:
            inputs = torch.cat([inputs[:, :b].detach(), inputs[:, b : b + 1]], dim=-1)
        return inputs[:, : b + 1] * math.sqrt(RANK / (b + 1))

    A, B = dynamic(adapter.A.T).T, dynamic(adapter.B)
    return F.linear(X, base.weight(), base.bias) + (X @ A.T @ B.T) * (ALPHA / RANK)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("b", range(RANK))
def test_output_and_gradients_are_those_of_the_authors_code(b, frozen):
    adapter, base = make()
    expected = reference(adapter, base, b, frozen)
    gradients = torch.autograd.grad((expected * SEED).sum(), [adapter.A, adapter.B])
    adapter.use(b + 1, b if frozen else 0)
    got = adapter(X, base)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    (got * SEED).sum().backward()
    for mine, theirs in zip((adapter.A.grad, adapter.B.grad), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_only_the_drawn_direction_gets_a_gradient():
    adapter, base = make()
    adapter.use(4, 3)
    (adapter(X, base) * SEED).sum().backward()
    assert adapter.A.grad.any(dim=1).tolist() == [False, False, False, True, False, False]
    assert adapter.B.grad.any(dim=0).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_truncated_it_is_the_lora_of_the_leading_directions(rank, rslora):
    adapter, base = make(rslora=rslora)
    lora = lora_of(adapter, rank, rslora)
    adapter.use(rank)
    trained = adapter(X, base)
    adapter.truncate(rank)
    for part in (adapter, adapter.eval()):
        torch.testing.assert_close(part(X, base), lora(X, base), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained, lora(X, base), atol=1e-5, rtol=1e-5)  # the scale it was trained with
    torch.testing.assert_close(adapter.delta_weight(base.weight()), lora.delta_weight(base.weight()))
    for mine, theirs in zip(adapter.factors(), lora.factors(), strict=True):
        assert torch.equal(mine, theirs)
    assert {k: t.shape for k, t in adapter.peft.tensors(adapter, None).items()} == {
        "A": (rank, 24),
        "B": (40, rank),
    }
    keys = adapter.peft.keys_of(adapter)
    assert (keys["r"], keys["lora_alpha"], keys["use_rslora"]) == (rank, ALPHA, rslora)
    assert DyLoRA.count(adapter.config, SITE) == sum(p.numel() for p in adapter.parameters())


def test_every_rank_is_a_prefix_of_the_next():
    adapter, _ = make()
    A, B = adapter.A.detach().clone(), adapter.B.detach().clone()
    for rank in (5, 3, 1):
        adapter.truncate(rank)
        assert torch.equal(adapter.A, A[:rank]) and torch.equal(adapter.B, B[:, :rank])


def test_evaluation_merge_and_export_are_at_the_full_rank_whatever_trains():
    adapter, base = make()
    lora = lora_of(adapter, RANK)
    adapter.use(2, 1)
    assert not torch.allclose(adapter(X, base), lora(X, base))
    torch.testing.assert_close(Adapted(base, adapter).merged_weight(), Adapted(base, lora).merged_weight())
    torch.testing.assert_close(adapter.eval()(X, base), lora(X, base))


def test_at_the_full_rank_it_is_lora_to_the_last_bit():
    adapter, base = make()
    assert torch.equal(adapter(X, base), lora_of(adapter, RANK)(X, base))


@pytest.mark.parametrize("rank", [0, RANK + 1])
def test_a_rank_that_was_not_trained_is_refused(rank):
    adapter, _ = make()
    with pytest.raises(ValueError, match=f"ranks 1 to {RANK}, not at {rank}"):
        adapter.truncate(rank)
    with pytest.raises(ValueError, match="no part of the ranks"):
        adapter.use(rank)
