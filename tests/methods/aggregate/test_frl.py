"""FRL's own statements."""

from __future__ import annotations

import pytest
import torch

from lrft.core.aggregate import Reply, Turn, bytes_of
from lrft.methods.aggregate.frl import find_rank, vote
from tests.methods.aggregate.replies import held_of, lora, made, replies_of, trained_by


def test_an_order_and_a_vote_are_those_of_the_paper():
    """Scores .5 .2 .9 .1 have the order 3 1 0 2; of three clients the sums of the places decide."""
    assert find_rank(torch.tensor([0.5, 0.2, 0.9, 0.1])).tolist() == [3, 1, 0, 2]
    rankings = torch.tensor([[2, 3, 0, 1], [2, 0, 3, 1], [3, 2, 0, 1]])
    places = [[row.index(edge) for edge in range(4)] for row in rankings.tolist()]
    sums = [sum(column) for column in zip(*places, strict=True)]
    assert sums == [5, 9, 1, 3]
    assert vote(rankings).tolist() == [2, 3, 0, 1]


def test_one_client_is_its_own_order_and_the_order_of_clients_is_none():
    orders = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(k)) for k in range(5)])
    assert torch.equal(vote(orders[:1]), orders[0])
    assert torch.equal(vote(orders), vote(orders.flip(0)))
    agreed = torch.stack([orders[0]] * 3 + [orders[1]])
    assert torch.equal(vote(agreed[:3]), orders[0])


def test_entries_step_by_their_place_and_the_middle_stays():
    infos = lora(rank=1, shapes=((1, 6),))
    held = {"s0.A": torch.zeros(1, 6), "s0.B": torch.zeros(1, 1)}
    update = torch.tensor([[0.3, -0.2, 0.1, -0.6, 0.5, -0.4]])
    trained = {"s0.A": update, "s0.B": torch.zeros(1, 1)}
    server = made("frl", infos, clients=1, lr=0.1, keep=2 / 3)
    found = server.aggregate(held, replies_of(server, held, [trained]), 0)
    expected = 0.1 * torch.tensor([[0.6, 0.0, 0.0, -1.0, 1.0, -0.6]])
    torch.testing.assert_close(found["s0.A"], expected, atol=1e-7, rtol=0)
    assert not found["s0.B"].any()  # a single entry has no place above another


def test_entries_that_nobody_moved_share_their_place():
    infos = lora(rank=2, shapes=((2, 4),))
    held = {name: torch.zeros_like(value) for name, value in held_of(infos).items()}
    server = made("frl", infos, clients=3, keep=1.0)
    still = server.aggregate(held, replies_of(server, held, [held] * 3), 0)
    assert still["s0.A"].abs().max() < 1e-15
    moved = {name: value.clone() for name, value in held.items()}
    moved["s0.A"][0, 0] += 1
    steps = server.aggregate(held, replies_of(server, held, [moved] * 3), 0)["s0.A"].flatten()
    assert float(steps[0]) == pytest.approx(0.001)
    assert steps[1:].tolist() == pytest.approx([-0.001 / 7] * 7)


def test_a_minority_of_poisoned_clients_moves_the_average_and_not_the_vote():
    """2 of 10 clients send the opposite of what all others learnt, a thousand times as large."""
    infos = lora(rank=4, shapes=((30, 40),))
    held = held_of(infos)
    truth = trained_by(held, 1, size=0.1, seed=9)[0]
    noise = trained_by({name: torch.zeros_like(value) for name, value in held.items()}, 10, size=0.03)
    honest = [{name: truth[name] + one[name] for name in held} for one in noise]
    poison = [{n: held[n] - 1000 * (truth[n] - held[n]) for n in held} for _ in range(2)]

    def likeness(name, trained):
        server = made(name, infos, clients=10)
        found = server.aggregate(held, replies_of(server, held, trained), 0)
        step, wanted = (torch.cat([(m[n] - held[n]).flatten() for n in held]) for m in (found, truth))
        return float(torch.cosine_similarity(step, wanted, dim=0))

    assert likeness("fedavg", honest) > 0.98 and likeness("frl", honest) > 0.85
    assert likeness("fedavg", [*honest[:8], *poison]) < -0.99
    assert likeness("frl", [*honest[:8], *poison]) > 0.8
    assert likeness("frl", [*honest[:4], *poison * 3]) < 0  # more than half of them is no minority


def test_what_is_sent_is_an_order_in_the_smallest_numbers_and_nothing_else_is_taken():
    infos = lora(rank=2, shapes=((2, 3),))
    held, server = held_of(infos), made("frl", infos, clients=1)
    message = server.up(held, trained_by(held, 1)[0], Turn(0, 0))
    assert bytes_of(message) == 2 * 6 + 2 * 4 + 2 * 16
    large = {"s0.A": torch.zeros(2**15 + 1), "s0.B": held["s0.B"]}
    assert made("frl", infos).up(large, large, Turn(0, 0))["s0.A"].dtype == torch.int32
    for name, value, said in (
        ("s0.A", torch.zeros(6, dtype=torch.int16), "sent no order"),
        ("s0.A.moved", torch.tensor([5, 5]), "counted entries"),
    ):
        with pytest.raises(ValueError, match=f"client 0 {said}"):
            server.aggregate(held, [Reply(0, 1, {**message, name: value})], 0)
