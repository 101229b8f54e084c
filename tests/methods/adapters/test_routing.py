"""Routing: weights, losses and their counts, on cases small enough to work out by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.methods.adapters._routing import (
    Balance,
    Load,
    Routing,
    choose,
    document_sums,
    measure,
    route,
    spread,
    squared_variation,
    switch_balance,
)


def batch(documents, rows, length) -> Batch:
    ids = torch.zeros(rows, length, dtype=torch.long)
    return Batch(
        ids, ids, tuple(documents), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    )


def test_the_chosen_weights_sum_to_one_and_are_a_softmax_of_their_logits():
    torch.manual_seed(0)
    x, router = torch.randn(7, 5), torch.randn(6, 5)
    weights, chosen = choose(route(x, router), 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    logits = (x @ router.mT).gather(-1, chosen)
    torch.testing.assert_close(weights, torch.softmax(logits, -1))
    dense = spread(weights, chosen, 6)
    assert ((dense > 0).sum(-1) == 2).all()
    torch.testing.assert_close(dense.sum(-1), torch.ones(7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_are_float32_for_half_precision_activations(dtype):
    torch.manual_seed(0)
    x, router = torch.randn(9, 64).to(dtype), torch.randn(4, 64)
    got = route(x, router)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.softmax(x.double() @ router.double().mT, -1).float())


def test_the_router_keeps_half_precision_inputs_as_they_are():
    x, router = torch.randn(9, 64).bfloat16(), torch.randn(4, 64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        route(x, router)
    assert not [t for t in saved if t.numel() == x.numel() and t.dtype == torch.float32]


def test_the_routers_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    x, router = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(4, 5)
    x32 = x.float().requires_grad_(True)
    router.requires_grad_(True)
    seed = torch.randn(2, 3, 4)
    got = torch.autograd.grad((route(x32, router) * seed).sum(), (x32, router))
    wanted = torch.autograd.grad((torch.softmax(x32 @ router.mT, -1) * seed).sum(), (x32, router))
    torch.testing.assert_close(got, wanted)


def load(slots, probability, tokens) -> Load:
    return Load(torch.tensor(slots), torch.tensor(probability), torch.tensor(tokens))


def test_the_balance_loss_is_one_where_routing_is_uniform_and_more_elsewhere():
    uniform = load([4.0, 4, 4, 4], [2.0, 2, 2, 2], 8.0)
    assert switch_balance([uniform]) == 1
    skewed = load([8.0, 4, 4, 0], [4.0, 2, 1.5, 0.5], 8.0)
    assert switch_balance([skewed]).item() == pytest.approx(4 * (0.5 * 0.5 + 0.25 * 0.25 + 0.25 * 0.1875))
    collapsed = load([8.0, 0, 0, 0], [8.0, 0, 0, 0], 8.0)
    assert switch_balance([collapsed]) == 4


def test_the_loss_over_several_routers_is_not_the_mean_of_theirs():
    """Two routers that collapse to different experts are balanced together."""
    one, two = load([4.0, 0], [4.0, 0], 4.0), load([0.0, 4], [0.0, 4], 4.0)
    assert switch_balance([one]) == switch_balance([two]) == 2
    assert switch_balance([one, two]) == 1


def test_padding_counts_for_nothing():
    torch.manual_seed(0)
    x, router = torch.randn(2, 6, 5), torch.randn(4, 5)
    probabilities = route(x, router)
    _, chosen = choose(probabilities, 2)
    with computing(batch([(0, 0, 4), (1, 0, 2), (1, 2, 5)], 2, 6)):
        got = measure(x, probabilities, chosen)
    real = torch.cat([x[0, :4], x[1, :5]])
    expected = measure(real, route(real, router), choose(route(real, router), 2)[1])
    for name in ("slots", "probability", "tokens"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    assert got.slots.sum() == 18


def test_documents_of_a_packed_row_are_summed_apart():
    values = torch.arange(24.0).view(2, 6, 2)
    with computing(batch([(0, 0, 4), (1, 0, 2), (1, 2, 5)], 2, 6)):
        got = document_sums(values, torch.zeros(2, 6, 3))
        flat = document_sums(values.view(1, 12, 2), torch.zeros(1, 12, 3))
    expected = torch.stack([values[0, :4].sum(0), values[1, :2].sum(0), values[1, 2:5].sum(0)])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(flat, expected)
    torch.testing.assert_close(document_sums(values, torch.zeros(2, 6, 3)), values.sum(1))


def test_squared_variation_of_a_worked_example():
    assert squared_variation(torch.tensor([1.0, 2, 3, 6])).item() == pytest.approx((14 / 3) / 9)
    assert squared_variation(torch.full((3, 4), 2.5)) == 0
    assert squared_variation(torch.tensor([[5.0]])) == 0


def test_only_the_first_of_a_group_speaks_and_all_forget():
    balance = Balance()
    one, two, other = balance.join("a"), balance.join("a"), balance.join("b")
    for routing in (one, two, other):
        routing.leave(load([1.0, 3], [1.0, 1], 2.0))
    assert two.take() == []
    assert len(one.take()) == 2 and one.take() == []
    assert len(other.take()) == 1


def test_what_experts_got_is_summed_once_it_is_asked_for():
    routing = Routing()
    routing.leave(load([9.0, 9], [1.0, 1], 2.0))
    assert routing.take_load("up") == {}
    routing.leave(load([1.0, 3], [1.0, 1], 2.0))
    routing.leave(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    torch.testing.assert_close(routing.take_load("up"), {"up": torch.tensor([1.75, 4.25])})
    assert routing.take_load("up") == {}


def test_a_copied_group_is_a_group_of_copies_without_what_was_left():
    one, two = Routing(), None
    two = Routing(one.group)
    one.leave(load([1.0, 1], [1.0, 1], 1.0))
    copies = copy.deepcopy([one, two])
    assert copies[0].group is copies[1].group and copies[0].group[0] is copies[0]
    assert one not in copies[0].group and len(copies[0].group) == 2
    assert copies[0].take() == []
    assert len(one.take()) == 1
