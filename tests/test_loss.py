"""The chunked head: the same loss and gradient, without the logits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.ops.loss import Head, linear_cross_entropy, target_logprobs
from tests.each import each


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def case(bias=True, frozen=True, softcap=None, scale=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    module = nn.Linear(16, 50, bias=bias).to(dtype).requires_grad_(not frozen)
    hidden = torch.randn(70, 16, dtype=dtype, requires_grad=True)
    return hidden, Head(module, softcap, scale), torch.randint(0, 50, (70,))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_loss_and_gradients_are_those_of_the_whole_logits(bias, frozen, softcap, scale):
    hidden, head, targets = case(bias, frozen, softcap, scale)
    loss = linear_cross_entropy(hidden, head, targets, chunk=32)
    (loss / 7).backward()
    got = [hidden.grad] + [p.grad for p in head.module.parameters() if p.requires_grad]
    again, whole, targets = case(bias, frozen, softcap, scale)
    expected = F.cross_entropy(whole.logits(again), targets, reduction="sum")
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(
        got, [again.grad] + [p.grad for p in whole.module.parameters() if p.requires_grad], strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_bfloat16_stays_within_its_rounding():
    hidden, head, targets = case(dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, head, targets, chunk=32)
    reference = F.cross_entropy(head.module.float()(hidden.float()), targets, reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-2, atol=0)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("frozen", [True, False])
def test_no_tensor_of_all_the_logits_ever_exists(frozen):
    hidden, head, targets = case(frozen=frozen)
    with Largest() as seen:
        linear_cross_entropy(hidden, head, targets, chunk=10).backward()
    assert seen.numel < 70 * 50
    with Largest() as seen, torch.no_grad():
        target_logprobs(hidden, head, targets, chunk=10)
    assert seen.numel < 70 * 50


def test_logprobs_are_log_softmax():
    hidden, head, targets = case()
    with torch.no_grad():
        expected = head.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(target_logprobs(hidden, head, targets, chunk=32), expected)


def test_no_positions_is_zero_with_a_graph():
    hidden, head, targets = case()
    loss = linear_cross_entropy(hidden[:0], head, targets[:0])
    loss.backward()
    assert loss.item() == 0


@each(
    ("bias", "frozen", "softcap", "scale", "smoothing"),
    list(itertools.product((True, False), (True, False), (None, 3.0), (1.0, 0.5), (0.0, 0.15))),
)
def test_the_squared_normaliser_is_that_of_whole_logits(bias, frozen, softcap, scale, smoothing):
    """Values and gradients, in the fused path and in those that are recomputed, with and without gradients on."""
    hidden, head, targets = case(bias, frozen, softcap, scale)
    loss = linear_cross_entropy(hidden, head, targets, chunk=32, smoothing=smoothing, z=0.05)
    (loss / 7).backward()
    got = [hidden.grad] + [p.grad for p in head.module.parameters() if p.requires_grad]
    again, whole, targets = case(bias, frozen, softcap, scale)
    logits = whole.logits(again)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    plain = expected.item()
    expected = expected + 0.05 * logits.exp().sum(-1).log().square().sum()
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected)
    assert abs(loss.item() - plain) > 1
    wanted = [again.grad] + [p.grad for p in whole.module.parameters() if p.requires_grad]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        bare = linear_cross_entropy(hidden, head, targets, 32, smoothing=smoothing, z=0.05)
        torch.testing.assert_close(bare, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_smoothed_targets_are_those_of_torch(bias, frozen, softcap, scale):
    """Values and gradients, in the fused path and in those that are recomputed, with and without gradients on."""
    hidden, head, targets = case(bias, frozen, softcap, scale)
    loss = linear_cross_entropy(hidden, head, targets, chunk=32, smoothing=0.15)
    (loss / 7).backward()
    got = [hidden.grad] + [p.grad for p in head.module.parameters() if p.requires_grad]
    again, whole, targets = case(bias, frozen, softcap, scale)
    expected = F.cross_entropy(whole.logits(again), targets, reduction="sum", label_smoothing=0.15)
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected)
    wanted = [again.grad] + [p.grad for p in whole.module.parameters() if p.requires_grad]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, head, targets, 32, smoothing=0.15), expected)


def test_smoothed_targets_move_the_gradient_and_none_leave_its_bits():
    found = {}
    for smoothing in (0.0, 0.3):
        hidden, head, targets = case()
        linear_cross_entropy(hidden, head, targets, chunk=32, smoothing=smoothing).backward()
        found[smoothing] = hidden.grad
    hidden, head, targets = case()
    linear_cross_entropy(hidden, head, targets, chunk=32).backward()
    assert torch.equal(found[0.0], hidden.grad) and not torch.allclose(found[0.3], hidden.grad)


def with_rows(dtype=torch.float32, scale=1.0, bias=False):
    """A frozen head whose rows 44 to 47 stand for themselves, and the dense head that holds them."""
    hidden, head, targets = case(bias=bias, scale=scale, dtype=dtype)
    rows = torch.randn(4, 16, requires_grad=True)
    dense = nn.Linear(16, 50, bias=bias).to(dtype)
    with torch.no_grad():
        for own, frozen in zip(dense.parameters(), head.module.parameters(), strict=True):
            own.copy_(frozen)
        dense.weight[44:48] = rows.to(dtype)
    targets[::5] = 45
    return hidden, Head(head.module, None, scale, rows, 44), Head(dense, None, scale), targets


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_train_beside_a_frozen_head_have_the_loss_and_gradients_of_a_dense_one(
    bias, scale, smoothing
):
    hidden, head, dense, targets = with_rows(scale=scale, bias=bias)
    again = hidden.detach().requires_grad_()
    loss = linear_cross_entropy(hidden, head, targets, chunk=32, smoothing=smoothing)
    expected = F.cross_entropy(dense.logits(again), targets, reduction="sum", label_smoothing=smoothing)
    (loss / 7).backward()
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, again.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head.rows.grad, dense.module.weight.grad[44:48], atol=1e-6, rtol=1e-4)
    assert head.module.weight.grad is None


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_so_have_the_log_probabilities_each_with_its_own_weight(scale):
    hidden, head, dense, targets = with_rows(scale=scale)
    again, weights = hidden.detach().requires_grad_(), torch.randn(70)
    found = target_logprobs(hidden, head, targets, chunk=32)
    expected = dense.logits(again).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(hidden.grad, again.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head.rows.grad, dense.module.weight.grad[44:48], atol=1e-6, rtol=1e-4)


def test_rows_beside_a_head_in_bfloat16_keep_their_gradients_in_float32():
    hidden, head, dense, targets = with_rows(torch.bfloat16)
    linear_cross_entropy(hidden, head, targets, chunk=32).backward()
    exact = dense.module.weight.detach().float().requires_grad_()
    F.cross_entropy(hidden.detach().float() @ exact.mT, targets, reduction="sum").backward()
    assert head.rows.grad.dtype == torch.float32
    torch.testing.assert_close(head.rows.grad, exact.grad[44:48], rtol=5e-2, atol=5e-2)
