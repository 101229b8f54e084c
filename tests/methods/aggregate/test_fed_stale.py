"""FedStale's own statements."""

from __future__ import annotations

import pytest
import torch

from tests.each import each
from tests.methods.aggregate.replies import held_of, lora, made, replies_of, trained_by

CLIENTS = 4
ROUNDS = ([0, 2], [1, 2], [0, 3], [2, 3])  # who takes part


def rounds_of(held, beta, lr=1.0):
    """The model after every round, each client at a place of its own."""
    infos = lora()
    server = made("fed_stale", infos, CLIENTS, 2, beta=beta, lr=lr)
    found = [held]
    for place, clients in enumerate(ROUNDS):
        trained = trained_by(found[-1], len(clients), seed=place)
        replies = replies_of(server, found[-1], trained, round=place, clients=clients)
        found.append(server.aggregate(found[-1], replies, place))
    return found


@each("beta", [0.0, 0.3, 1.0])
def test_a_step_is_a_mixture_of_fedavg_and_fedvarp(beta):
    """Each written out: the mean of the fresh updates; and that of fresh - old, plus the mean of all old."""
    models = rounds_of(held_of(lora()), beta)
    memory = dict.fromkeys(range(CLIENTS), 0.0)
    for place, clients in enumerate(ROUNDS):
        held, after = models[place]["s0.A"].double(), models[place + 1]["s0.A"].double()
        trained = trained_by(models[place], len(clients), seed=place)
        fresh = {client: held - one["s0.A"].double() for client, one in zip(clients, trained, strict=True)}
        average = sum(fresh.values()) / len(fresh)
        reduced = sum(fresh[c] - memory[c] for c in clients) / len(clients) + sum(memory.values()) / CLIENTS
        step = (1 - beta) * average + beta * reduced
        torch.testing.assert_close(after, held - step, atol=1e-6, rtol=1e-6)
        memory |= fresh


def test_where_all_take_part_beta_changes_nothing_and_the_step_is_fedavg():
    infos = lora()
    held = held_of(infos)
    trained = trained_by(held, 4)
    average = made("fedavg", infos, weights="equal")
    for beta in (0.0, 0.7):
        server, model = made("fed_stale", infos, beta=beta), held
        for place in range(2):
            model = server.aggregate(model, replies_of(server, model, trained, round=place), place)
            found = average.aggregate(held, replies_of(average, held, trained), 0)
            torch.testing.assert_close(model, found, atol=1e-6, rtol=1e-6)


def test_half_the_rate_is_half_the_step():
    whole, half = rounds_of(held_of(lora()), 0.5), rounds_of(held_of(lora()), 0.5, lr=0.5)
    start, name = whole[0]["s1.B"], "s1.B"
    torch.testing.assert_close(half[1][name] - start, (whole[1][name] - start) / 2, atol=1e-6, rtol=1e-6)


def test_what_is_remembered_is_of_what_trains_or_refused():
    infos = lora()
    server = made("fed_stale", infos, CLIENTS, 2)
    server.load_state_dict({"memory": {"0": held_of(infos)}})
    kept = server.memory
    short = {name: value for name, value in held_of(infos).items() if name != "s0.A"}
    whole = held_of(infos)
    for client, odd, why in (
        (1, short, "s0.A is missing"),
        (1, {**whole, "s0.A": torch.zeros(3)}, "s0.A has shape"),
        (1, {**whole, "s0.A": whole["s0.A"].long()}, "of torch.int64"),
        (1, {**whole, "s0.A": whole["s0.A"] / 0}, "not finite"),
        (CLIENTS, whole, f"there is no client {CLIENTS}"),
    ):
        with pytest.raises(ValueError, match=why):
            server.load_state_dict({"memory": {str(client): odd}})
    assert server.memory is kept
