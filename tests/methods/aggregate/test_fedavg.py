"""FedAvg's own statements."""

from __future__ import annotations

import torch

from lrft.core.aggregate import bytes_of
from tests.methods.aggregate.replies import LLAMA_3B, held_of, lora, made, products, replies_of, trained_by


def test_tensors_are_averaged_by_rows_or_alike():
    infos = lora()
    held, rows = held_of(infos), [1, 2, 5]
    trained = trained_by(held, 3)
    for weights, shares in (("examples", [1 / 8, 2 / 8, 5 / 8]), ("equal", [1 / 3] * 3)):
        server = made("fedavg", infos, weights=weights)
        found = server.aggregate(held, replies_of(server, held, trained, rows), 0)
        for name, value in found.items():
            by_hand = sum(p * one[name].double() for p, one in zip(shares, trained, strict=True))
            torch.testing.assert_close(value.double(), by_hand, atol=1e-6, rtol=1e-6)


def test_averages_of_the_factors_are_not_the_average_of_the_changes():
    """The gap that the other aggregators close: far above rounding."""
    infos = lora()
    held = held_of(infos)
    trained = trained_by(held, 5, size=1.0)
    server = made("fedavg", infos)
    found = products(server.aggregate(held, replies_of(server, held, trained), 0), infos)
    exact = [products(one, infos) for one in trained]
    for site, value in found.items():
        mean = sum(one[site] for one in exact) / 5
        assert (value - mean).norm() > 0.1 * mean.norm()


def test_a_round_sends_as_many_numbers_as_published_for_both_factors():
    """48,627,712 a round and client, Llama-3.2-3B at rank 32."""
    shapes = [(out, fan_in) for out, fan_in, count in LLAMA_3B for _ in range(28 * count)]
    infos = lora(32, shapes, device="meta")
    assert bytes_of(made("fedavg", infos).down(held_of(infos), None)) == 4 * 48_627_712
