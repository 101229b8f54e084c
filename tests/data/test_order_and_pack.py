from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data.order import permutation
from lrft.data.pack import pack


@given(n=st.integers(0, 300), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_an_epoch_visits_every_row_exactly_once(n, seed, epoch):
    assert sorted(permutation(n, seed, epoch)) == list(range(n))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    import torch

    first = permutation(100, 3, 1)
    torch.manual_seed(99)
    torch.rand(5)
    assert permutation(100, 3, 1) == first
    assert len({tuple(permutation(100, seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_the_order_is_the_same_in_another_process():
    code = "from lrft.data.order import permutation; print(permutation(40, 7, 2))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(permutation(40, 7, 2))


def test_the_order_never_changes_between_releases():
    assert permutation(10, 0, 0) == [8, 1, 9, 7, 2, 6, 0, 3, 4, 5]


@given(
    st.integers(1, 200).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=200)))
)
@settings(max_examples=150, deadline=None)
def test_packing_places_each_document_once_and_overfills_no_row(case):
    capacity, lengths = case
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= capacity for row in rows)
    assert all(row == sorted(row) for row in rows)


@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
@settings(max_examples=100, deadline=None)
def test_packing_is_best_fit_with_the_longest_first(case):
    capacity, lengths = case
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        holding = [room for room in rooms if room >= length]
        if holding:
            best = min(holding)
            rooms[rooms.index(best)] = best - length
        else:
            rooms.append(capacity - length)
    packed = pack(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in row) for row in packed) == sorted(rooms)


def gsm8k_like(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [min(480, max(40, int(draw.lognormvariate(5.05, 0.4)))) for _ in range(n)]


@pytest.mark.parametrize("capacity", [512, 1024, 2048])
def test_packing_fills_rows_of_gsm8k_like_lengths_over_97_percent(capacity):
    lengths = gsm8k_like(7473)
    assert sum(lengths) / (capacity * len(pack(lengths, capacity))) > 0.97


@pytest.mark.skipif("LRFT_DATA" not in os.environ, reason="LRFT_DATA names no folder of data sets")
@pytest.mark.parametrize("capacity", [512, 1024])
def test_packing_fills_rows_of_gsm8k_over_97_percent(capacity):
    """In characters a third of a token long, so that no model is needed: it is the spread of lengths that counts."""
    rows = [json.loads(line) for line in (Path(os.environ["LRFT_DATA"]) / "gsm8k" / "train.jsonl").open()]
    lengths = [(len(row["question"]) + len(row["answer"])) // 3 + 20 for row in rows]
    order = [lengths[k] for k in permutation(len(lengths), 0, 0) if lengths[k] <= capacity]
    assert sum(order) / (capacity * len(pack(order, capacity))) > 0.97


def test_packing_a_hundred_thousand_documents_takes_about_a_second():
    lengths = gsm8k_like(100_000)
    begun = time.process_time()
    pack(lengths, 4096)
    assert time.process_time() - begun < 5


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="document 1 has 9 tokens"):
        pack([3, 9], 8)
