"""HetLoRA's own statements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.aggregate import Turn, bytes_of
from lrft.core.params import ParamInfo
from tests.methods.aggregate.replies import held_of, lora, made, products, replies_of, trained_by


def cut(tensors, rank):
    """The tensors with the components beyond a rank set to zero."""
    return {
        name: value * (torch.arange(3) < rank).view((-1, 1) if name.endswith("A") else (1, -1))
        for name, value in tensors.items()
    }


def test_averages_are_padded_and_weighted_by_the_size_of_the_change():
    infos, ranks = lora(), [1, 2, 3]
    held, server = held_of(infos), made("hetlora", infos, clients=3, ranks=ranks)
    trained = [cut(one, r) for one, r in zip(trained_by(held, 3, size=1.0), ranks, strict=True)]
    sizes = [sum(float(v.square().sum()) for v in products(one, infos).values()) ** 0.5 for one in trained]
    found = server.aggregate(held, replies_of(server, held, trained), 0)
    for name, value in found.items():
        by_hand = sum(
            size / sum(sizes) * one[name].double() for size, one in zip(sizes, trained, strict=True)
        )
        torch.testing.assert_close(value.double(), by_hand, atol=1e-6, rtol=1e-6)


def test_at_equal_ranks_it_is_fedavg():
    infos = lora()
    held = held_of(infos)
    trained, rows = trained_by(held, 3), [1, 2, 4]
    server, average = made("hetlora", infos, ranks=[3], weights="examples"), made("fedavg", infos)
    torch.testing.assert_close(
        server.aggregate(held, replies_of(server, held, trained, rows), 0),
        average.aggregate(held, replies_of(average, held, trained, rows), 0),
    )


def test_a_client_is_sent_its_leading_components_and_begins_with_no_others():
    infos = lora()
    held, server = held_of(infos), made("hetlora", infos, ranks=[1, 3])
    for client, rank in ((0, 1), (1, 3), (2, 1)):
        message = server.down(held, Turn(client, 0))
        assert bytes_of(message) == 4 * rank * (5 + 4 + 6 + 7)
        assert all(
            torch.equal(server.taken(message, held, Turn(client, 0))[n], v)
            for n, v in cut(held, rank).items()
        )


def test_what_no_client_could_train_is_refused():
    infos = lora()
    held, server = held_of(infos), made("hetlora", infos, ranks=[2])
    with pytest.raises(ValueError, match="client 0, of rank 2, does not have"):
        server.up(held, held, Turn(0, 0))
    with pytest.raises(ValueError, match="rank 4 cannot train an adapter of rank 3"):
        made("hetlora", infos, ranks=[4])
    alone = [*infos, ParamInfo("norm", nn.Parameter(torch.ones(3)), "vector")]
    with pytest.raises(ValueError, match="norm is of none"):
        made("hetlora", alone, ranks=[2])
