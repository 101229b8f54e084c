"""Seeding draws what torch's own seeding draws, on every device that is there."""

from __future__ import annotations

import pytest
import torch

from lrft.ops import draws


@pytest.mark.parametrize("seed", [0, 7, -3, 2**40])
def test_the_cpu_draws_what_it_draws_after_torchs_own_seeding(seed):
    torch.random.manual_seed(seed)
    expected = torch.rand(5)
    draws.seed_generators(seed)
    assert torch.equal(torch.rand(5), expected)


def test_where_there_is_an_accelerator_all_are_seeded(monkeypatch):
    seeded: list[int] = []
    monkeypatch.setattr(draws, "_has_accelerator", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    draws.seed_generators(5)
    assert seeded == [5]
