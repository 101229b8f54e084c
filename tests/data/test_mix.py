"""Several sources in an epoch: how many rows of each, which ones, and that nothing but (seed, epoch) decides it."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data.alternating import Alternating
from lrft.data.encoded import Encoded
from lrft.data.mix import Mixture, Wanted, rows_of_an_epoch
from lrft.data.steps import TrainData
from lrft.registry.errors import DataError

MADE = {"batch_size": 2, "accumulation": 2, "max_length": 32, "seed": 5, "pad_id": 0}


def counts(sizes, temperature=1.0, rows="together", **wanted):
    sources = [
        Wanted(f"s{k}", **{key: values[k] for key, values in wanted.items()}) for k in range(len(sizes))
    ]
    return rows_of_an_epoch(sources, sizes, temperature, rows)


def mixture(members, seed=5, temperature=1.0, rows="together", **wanted):
    sources = [
        Wanted(f"s{k}", **{key: values[k] for key, values in wanted.items()}) for k in range(len(members))
    ]
    return Mixture(sources, members, temperature, rows, seed)


def test_without_settings_every_row_is_seen_once():
    assert counts([7, 3]) == [7, 3]
    assert mixture([range(7), range(7, 10)]).visits(4) == list(range(10))


def test_repeats_and_caps_say_the_rows_of_a_source():
    assert counts([10, 10, 10], repeat=[3.0, 0.25, 1.0], cap=[None, None, 4]) == [30, 2, 4]
    assert counts([2, 2], repeat=[0.01, 1.0]) == [1, 2], "a source is never left out by rounding"


def test_weights_share_the_rows_of_all_sources():
    assert counts([90, 10], weight=[1.0, 1.0]) == [50, 50]
    assert counts([90, 10], weight=[3.0, 1.0]) == [75, 25]
    assert counts([5, 5, 5], weight=[1.0, 1.0, 1.0], rows=7) == [3, 2, 2], "all rows are given out"


def test_the_rows_of_an_epoch_follow_the_first_or_the_last_source_to_be_used_up():
    assert counts([90, 10], weight=[1.0, 1.0], rows="first_exhausted") == [10, 10]
    assert counts([90, 10], weight=[1.0, 1.0], rows="all_exhausted") == [90, 90]
    assert counts([90, 10], weight=[3.0, 1.0], rows="first_exhausted") == [30, 10]
    assert counts([90, 10], weight=[1.0, 1.0], rows="all_exhausted", cap=[None, 20]) == [90, 20]


def test_a_temperature_lifts_small_sources():
    """Shares of 100 and 1 row to the power of 1/2 are as 10 to 1."""
    assert counts([100, 1], temperature=2.0, rows=110) == [100, 10]
    assert counts([100, 1], temperature=1e9, rows=110) == [55, 55]
    assert counts([100, 1], temperature=1.0, rows=101) == [100, 1]
    assert counts([100, 1], temperature=2.0, rows=40, cap=[9, None]) == [9, 10], "a cap is of the size too"


def test_a_source_of_which_nothing_would_be_seen_is_refused():
    with pytest.raises(
        DataError, match=r"data\.train\.1: of 10 rows of an epoch none is of s1.*raise its weight"
    ):
        counts([10, 10], weight=[1000.0, 1.0], rows=10)
    with pytest.raises(DataError, match=r"data\.train\.0: no row of s0 has a token to learn"):
        counts([0, 10])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    repeats=st.lists(st.floats(0.05, 4), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_over_epochs_no_row_is_seen_twice_more_than_another(sizes, repeats, seed):
    members, first = [], 0
    for size in sizes:
        members.append(range(first, first + size))
        first += size
    mixed = mixture(members, seed, repeat=repeats)
    seen = Counter(chain.from_iterable(mixed.visits(epoch) for epoch in range(7)))
    for indices, share in zip(members, mixed.shares, strict=True):
        times = [seen[index] for index in indices]
        assert max(times) - min(times) <= 1
        assert sum(times) == 7 * share.an_epoch
    assert mixture(members, seed, repeat=repeats).visits(5) == mixed.visits(5), "the epoch alone decides"


def test_half_of_a_source_an_epoch_is_all_of_it_in_two():
    mixed = mixture([range(10), range(10, 12)], repeat=[0.5, 1.0])
    first, second = ([k for k in mixed.visits(epoch) if k < 10] for epoch in (0, 1))
    assert len(first) == len(second) == 5 and sorted(first + second) == list(range(10))


@pytest.mark.parametrize("packing", [True, False])
def test_a_list_without_settings_trains_as_the_files_joined(document, packing):
    rows = [document(4 + k % 5, 2, 100 * k) for k in range(23)]
    plain = TrainData(rows, packing=packing, **MADE)
    mixed = TrainData(rows, packing=packing, mixture=mixture([range(9), range(9, 23)]), **MADE)
    for step in range(9):
        one, other = plain.at(step), mixed.at(step)
        assert [batch.examples for batch in one.micro_batches] == [b.examples for b in other.micro_batches]
        assert one.epoch == other.epoch


@pytest.mark.parametrize("packing", [True, False])
def test_a_step_of_a_mixture_is_a_function_of_its_number_alone(document, packing):
    rows = [document(4 + k % 5, 2, 100 * k) for k in range(23)]

    def made():
        mixed = mixture([range(9), range(9, 23)], repeat=[2.5, 0.3])
        return TrainData(rows, packing=packing, mixture=mixed, **MADE)

    walked = made()
    straight = [walked.at(step) for step in range(25)]
    for step in (24, 0, 13):
        alone = made().at(step)
        assert [b.examples for b in alone.micro_batches] == [b.examples for b in straight[step].micro_batches]
        assert (alone.targets, alone.epoch) == (straight[step].targets, straight[step].epoch)
    first = Counter(
        chain.from_iterable(b.examples for s in straight for b in s.micro_batches if s.epoch <= 1)
    )
    assert sum(first[k] for k in range(9)) == 22 and sum(first[k] for k in range(9, 23)) == 4


def alternating(sizes, batch_size=2):
    rows = [Encoded([0, 1, 2], [False, True, True]) for _ in range(sum(sizes))]
    whole = mixture([range(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))])
    settings = {**MADE, "accumulation": 1, "batch_size": batch_size, "packing": False}
    return Alternating([TrainData(rows, **settings, mixture=whole.only(k)) for k in whole.places], whole)


def rows_of(data, step):
    return sorted(k for batch in data.at(step).micro_batches for k in batch.examples)


def test_sources_take_turns_and_a_small_one_begins_again():
    data = alternating([4, 7, 2])
    seen = [rows_of(data, step) for step in range(12)]
    assert all(
        set(rows) <= set(range(*edges))
        for rows, edges in zip(seen, [(0, 4), (4, 11), (11, 13)] * 4, strict=True)
    )
    assert sorted(chain(*seen[1::3])) == list(range(4, 11)) and seen[2::3] == [[11, 12]] * 4
    assert sorted(chain(seen[0], seen[3])) == sorted(chain(seen[6], seen[9])) == [0, 1, 2, 3]
    assert [rows_of(alternating([4, 7, 2]), step) for step in (5, 11, 0)] == [seen[5], seen[11], seen[0]]


def test_a_run_of_alternating_sources_is_as_long_as_the_largest_takes():
    data = alternating([4, 7, 2])
    assert (data.total_steps(None, None), data.total_steps(None, 2), data.total_steps(5, 2)) == (12, 24, 5)
    assert data.steps_per_epoch(0) == 12
    with pytest.raises(DataError, match=r"2 steps are fewer than the 3 sources .* write 3 or more"):
        data.total_steps(2, None)


def test_the_layout_of_alternating_sources_tells_the_steps_of_its_micro_batches():
    data = alternating([4, 7, 2])
    found = [sorted(k for row in batch for k in row) for batch in data.layout(0)]
    steps = [data.place_of(k)[0] for k in range(len(found))]
    assert steps == [0, 3, 1, 4, 7, 10, 2] and found == [rows_of(data, step) for step in steps]
