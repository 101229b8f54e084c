"""Fed-SB's own statements."""

from __future__ import annotations

import torch
from torch import nn

from lrft.core.aggregate import bytes_of
from lrft.core.params import ParamInfo
from tests.methods.aggregate.replies import held_of, made, replies_of, trained_by


def cores(rank=3, count=2, device=None):
    return [
        ParamInfo(f"s{place}.R", nn.Parameter(torch.zeros(rank, rank, device=device)), "core", f"s{place}")
        for place in range(count)
    ]


def test_the_average_is_the_mean_of_a_stack_whatever_rows_clients_hold():
    """As the authors form it, to the bit."""
    infos = cores()
    held = held_of(infos)
    trained = trained_by(held, 5)
    server = made("fed_sb", infos)
    found = server.aggregate(held, replies_of(server, held, trained, [1, 20, 3, 4, 5]), 0)
    for name, value in found.items():
        assert torch.equal(value, torch.stack([one[name].float() for one in trained], 0).mean(0))


def test_the_average_of_the_changes_is_the_change_of_the_average():
    infos = cores()
    held, generator = held_of(infos), torch.Generator().manual_seed(3)
    trained = trained_by(held, 5, size=1.0)
    server = made("fed_sb", infos)
    found = server.aggregate(held, replies_of(server, held, trained), 0)
    A, B = (torch.randn(shape, generator=generator).double() for shape in ((3, 7), (6, 3)))
    for name, value in found.items():
        mean = sum(B @ one[name].double() @ A for one in trained) / 5
        torch.testing.assert_close(B @ value.double() @ A, mean, atol=1e-6, rtol=1e-6)


def test_earlier_rounds_are_not_averaged_again():
    infos = cores()
    held, server = held_of(infos), made("fed_sb", infos)
    server.aggregate(held, replies_of(server, held, trained_by(held, 3, seed=1)), 0)
    later = trained_by(held, 3, seed=2)
    found = server.aggregate(held, replies_of(server, held, later, round=1), 1)
    assert torch.equal(found["s0.R"], torch.stack([one["s0.R"] for one in later]).mean(0))


def test_a_round_sends_the_published_numbers_whatever_the_number_of_clients():
    """Llama-3.2-3B, 196 matrices."""
    for rank, numbers in ((120, 2_822_400), (160, 5_017_600), (200, 7_840_000)):
        infos = cores(rank, 196, device="meta")
        for clients in (5, 25):
            assert bytes_of(made("fed_sb", infos, clients).down(held_of(infos), None)) == 4 * numbers
