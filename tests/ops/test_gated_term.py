"""The node of low-rank terms with a gate a token, against the same written out, and its draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.ops.dropout import drop
from lrft.ops.gated_term import gated_low_rank
from lrft.ops.products import multiplying

PARTS = [(2, 0.25), (1, 0.0), (3, 0.5)]


def tensors(dtype=torch.float64, tokens=(2, 5), shared=False):
    torch.manual_seed(0)
    shapes = [(*tokens, 7), (6, 7), (4, 6), (6,) if shared else (*tokens, 6)]
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def written_out(x, A, B, gates, parts=()):
    """The term by the formula; every part of its input drawn by `drop`, as the node draws."""
    flat, products, first = x.reshape(-1, x.shape[-1]), [], 0
    for width, p in parts or [(len(A), 0.0)]:
        rows, first = A[first : first + width], first + width
        seen = flat if p == 0 else drop(flat, p, shared=False).whole(flat)
        products.append(seen @ rows.mT)
    t = torch.cat(products, 1).view(*x.shape[:-1], -1)
    return (t * gates) @ B.mT


@pytest.mark.parametrize("shared", [False, True], ids=["a gate a token", "gates of all"])
@pytest.mark.parametrize("parts", [(), PARTS, [(6, 0.1)]], ids=["whole", "parts", "one draw"])
def test_product_and_gradients_are_those_of_the_formula(parts, shared):
    ones, others = tensors(shared=shared), tensors(shared=shared)
    torch.manual_seed(1)
    got = gated_low_rank(*ones, parts=parts)
    torch.manual_seed(1)
    expected = written_out(*others, parts=parts)
    torch.testing.assert_close(got, expected)
    dy = torch.randn_like(got)
    got.backward(dy)
    expected.backward(dy)
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("slow", [(), (torch.bfloat16,)], ids=["in bfloat16", "in float32"])
def test_half_precision_is_near_the_exact_numbers_whatever_it_is_multiplied_in(slow):
    exact = tensors(tokens=(4, 16))
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    half[3] = exact[3].detach().float().requires_grad_()
    for parts in ((), PARTS):
        with multiplying(slow):
            torch.manual_seed(1)
            got = gated_low_rank(*half, parts=parts)
            torch.manual_seed(1)
            expected = written_out(*(tensor.detach().double() for tensor in half), parts=parts)
            found = torch.autograd.grad(got.float().square().sum(), half)
        assert got.dtype == torch.bfloat16 and [g.dtype for g in found] == [t.dtype for t in half]
        torch.testing.assert_close(got.double(), expected, atol=0.06, rtol=0.02)


def test_only_what_trains_has_a_gradient():
    x, A, B, gates = tensors()
    gated_low_rank(x.detach(), A.detach(), B, gates.detach(), parts=PARTS).sum().backward()
    assert x.grad is None and A.grad is None and gates.grad is None
    assert B.grad is not None


def test_every_expert_draws_its_own_dropout():
    x, A, B = torch.ones(1, 400), torch.ones(2, 400), torch.eye(2)
    torch.manual_seed(0)
    one, two = gated_low_rank(x, A, B, torch.ones(2), parts=[(1, 0.5), (1, 0.5)])[0]
    assert one != two
    torch.manual_seed(0)
    assert one == drop(x, 0.5, shared=False).whole(x).sum()


def test_of_what_is_dropped_the_places_alone_are_kept():
    x, A, B, gates = (tensor.detach() for tensor in tensors(torch.float32, tokens=(64,)))
    A.requires_grad_()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        gated_low_rank(x, A, B, gates, parts=[(3, 0.05), (3, 0.05)])
    many = sum(tensor.nbytes for tensor in (x, A, B, gates)) + 64 * 6 * 4  # and t
    assert sum(sizes) < many + 2 * 8 * 2 * 0.05 * x.numel() + 8 * 64


def test_a_gate_of_zero_takes_product_and_gradient_away():
    torch.manual_seed(0)
    A, B = torch.randn(4, 6, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    gates = torch.tensor([0.5, 0.5, 0.0, 0.0])
    x = torch.randn(3, 6)
    got = gated_low_rank(x, A, B, gates)
    torch.testing.assert_close(got, 0.5 * x @ A[:2].mT @ B[:, :2].mT)
    got.sum().backward()
    assert A.grad[2:].abs().sum() == 0 and B.grad[:, 2:].abs().sum() == 0
    assert A.grad[:2].abs().sum() > 0


def test_a_gate_with_fewer_dimensions_than_the_input_is_of_all_rows():
    x, A, B, _ = tensors()
    gates = torch.rand(5, 6, dtype=torch.float64)
    expected = F.linear(F.linear(x, A) * gates, B)
    torch.testing.assert_close(gated_low_rank(x, A, B, gates), expected)


def test_an_input_that_lies_in_columns_is_dropped_like_any_other():
    x, A, B, gates = tensors(tokens=(5,))
    columns = x.detach().mT.contiguous().mT.requires_grad_()
    assert not columns.is_contiguous()
    found = []
    for given in (x, columns):
        torch.manual_seed(1)
        y = gated_low_rank(given, A, B, gates, parts=PARTS)
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, A, B, gates])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
