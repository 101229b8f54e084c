"""Ferret's own statements."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

from lrft.core.aggregate import Turn, bytes_of
from lrft.methods.aggregate.ferret import COORDINATES, COUNTS, direction, group, project
from tests.each import each
from tests.methods.aggregate.replies import held_of, lora, made, replies_of, trained_by


def drawn_globally(seed, size):
    """A direction as the authors draw it: from torch's own generator, in place."""
    torch.manual_seed(seed)
    bound = 1 / size**0.5
    return nn.init.trunc_normal_(torch.empty(size), mean=0.0, std=1.0, a=-bound, b=bound)


@each(("seed", "size"), [(7, 1), (99_999_999_999, 40), (3, 1000)])
def test_a_direction_is_the_one_that_its_seed_gives_everywhere(seed, size):
    assert torch.equal(direction(seed, size), drawn_globally(seed, size))


def test_groups_hold_no_more_than_nine_tenths_of_the_median_tensor():
    """The authors' loop, by hand: 10, 20, 30, 40, 50 have the median 30, so a group is full at 27."""
    assert group([("a", 10), ("b", 20), ("c", 30), ("d", 40), ("e", 50)]) == [
        ["a"],
        ["b"],
        ["c"],
        ["d"],
        ["e"],
    ]
    assert group([("a", 10), ("b", 10), ("c", 10), ("d", 99), ("e", 99)]) == [
        ["a"],
        ["b"],
        ["c"],
        ["d"],
        ["e"],
    ]
    sizes = [12, 5, 40, 8, 8, 8, 90]
    assert int(0.9 * numpy.median(sizes)) == 7
    assert group(list(zip("abcdefg", sizes, strict=True))) == [[name] for name in "abcdefg"]
    assert group([("a", 2), ("b", 3), ("c", 40), ("d", 1), ("e", 50), ("f", 50)]) == [
        ["a", "b"], ["c"], ["d"], ["e"], ["f"]
    ]  # fmt: skip


def test_a_round_is_the_authors_arithmetic_on_the_same_seeds():
    """Projection with d / m, mean over clients, and the update seed by seed with its clip, written out in a loop."""
    infos, K = lora(), 12
    held = held_of(infos)
    trained = trained_by(held, 3)
    server = made("ferret", infos, clients=3, seeds=K, lr=2.5, clip=0.05)
    replies = replies_of(server, held, trained, [1, 5, 9])
    pool = {seed: torch.zeros(len(server.groups)) for seed in server.seeds}
    for reply, one in zip(replies, trained, strict=True):
        deltas = [
            torch.cat([(held[name] - one[name]).flatten() for name in names]) for names in server.groups
        ]
        largest = max(float(delta.norm()) for delta in deltas)
        counts = [max(int(float(delta.norm()) / largest * K), 2) for delta in deltas]
        assert reply.message[COUNTS].tolist() == counts and max(counts) == K
        for place, (delta, chosen) in enumerate(
            zip(deltas, server._choices(Turn(reply.client, 0)), strict=True)
        ):
            for k in chosen[: counts[place]]:
                seed = server.seeds[k]
                value = torch.sum(delta * drawn_globally(seed, len(delta))) * (len(delta) / counts[place])
                pool[seed][place] += value * (1 / 3)
    expected = {name: value.clone() for name, value in held.items()}
    for seed, values in pool.items():
        for names, value in zip(server.groups, values, strict=True):
            base = drawn_globally(seed, sum(held[name].numel() for name in names)) * value
            shrink = min(1.0, 0.05 / (float(base.norm()) + 1e-8))
            parts = (2.5 * shrink * base).split([held[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                expected[name] -= part.view_as(expected[name])
    torch.testing.assert_close(server.aggregate(held, replies, 0), expected, atol=1e-6, rtol=1e-6)


def test_every_client_rebuilds_the_servers_model_from_the_coordinates():
    infos = lora()
    held, server = held_of(infos), made("ferret", infos, seeds=8)
    after = server.aggregate(held, replies_of(server, held, trained_by(held, 4)), 0)
    client = made("ferret", infos, seeds=8)
    assert torch.equal(
        torch.cat(
            [v.flatten() for v in client.taken(server.down(after, Turn(0, 1)), held, Turn(0, 1)).values()]
        ),
        torch.cat([v.flatten() for v in after.values()]),
    )


def test_rebuilt_updates_are_a_third_of_the_update_and_as_like_it_as_directions_are_many():
    """Truncated at 1 / sqrt(d) a normal is nearly uniform: its variance is 1 / 3d. The cosine is sqrt(m / (m + d))."""
    size = 200
    update = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for count in (50, 800):
        seeds = range(1, count + 1)
        drawn = torch.stack([direction(seed, size) for seed in seeds])
        rebuilt = project(update, list(seeds)) @ drawn
        share = float(rebuilt @ update / update.square().sum())
        cosine = float(torch.cosine_similarity(rebuilt, update, dim=0))
        assert abs(share - 1 / 3) < 0.08
        assert abs(cosine - (count / (count + size)) ** 0.5) < 0.08


def test_no_update_has_no_coordinates_and_momentum_keeps_those_of_before():
    infos = lora()
    held, server = held_of(infos), made("ferret", infos, clients=1, seeds=6, momentum=0.5)
    first = server.up(held, trained_by(held, 1)[0], Turn(0, 0))
    assert bytes_of(first) == 4 * len(first[COORDINATES]) + 4 * len(server.groups)
    server.aggregate(held, replies_of(server, held, trained_by(held, 1)), 0)
    before = server.pool.clone()
    still = replies_of(server, held, [held], round=1)
    assert not still[0].message[COORDINATES].any()
    server.aggregate(held, still, 1)
    assert before.any() and torch.equal(server.pool, before / 2)


def test_an_update_that_is_no_number_is_refused():
    infos = lora()
    held = held_of(infos)
    broken = {name: value / 0 for name, value in held.items()}
    with pytest.raises(ValueError, match=r"client 2 .* not finite"):
        made("ferret", infos).up(held, broken, Turn(2, 0))


def test_a_pool_of_another_shape_or_kind_is_refused():
    server = made("ferret", lora(), 2, 2)
    server.load_state_dict(server.state_dict())
    for odd in ({"pool": server.pool[:, :-1]}, {"pool": server.pool.long()}, {"pool": server.pool / 0}, {}):
        with pytest.raises(ValueError, match=r"pool (has shape|holds numbers|is missing)"):
            server.load_state_dict(odd)
