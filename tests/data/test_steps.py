from __future__ import annotations

import random
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.steps import TrainData
from lrft.registry.errors import DataError

SETTINGS = {"batch_size": 2, "accumulation": 2, "max_length": 32, "packing": True, "seed": 5, "pad_id": 0}


@pytest.fixture
def rows(document):
    draw = random.Random(1)
    return [document(draw.randint(3, 20), draw.randint(1, 2), 1000 * i) for i in range(53)]


def examples(step):
    return [index for batch in step.micro_batches for index in batch.examples]


def equal(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("input_ids", "position_ids", "supervised", "targets")
    ) and (a.documents, a.examples) == (b.documents, b.examples)


@pytest.mark.parametrize("packing", [True, False])
def test_each_epoch_trains_every_row_once_in_another_order(rows, packing):
    data = TrainData(rows, **{**SETTINGS, "packing": packing})
    seen, step = [], 0
    for epoch in range(3):
        steps = [data.at(step + k) for k in range(data.steps_per_epoch(epoch))]
        step += len(steps)
        order = list(chain.from_iterable(examples(s) for s in steps))
        assert sorted(order) == list(range(len(rows)))
        assert steps[-1].epoch == epoch + 1
        assert sum(s.tokens for s in steps) == sum(len(row.input_ids) for row in rows)
        seen.append(order)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("packing", [True, False])
def test_a_step_is_a_function_of_its_number_alone(rows, packing):
    made = {**SETTINGS, "packing": packing}
    walked = TrainData(rows, **made)
    straight = [walked.at(step) for step in range(30)]
    for step in (29, 0, 17, 8, 17):
        fresh = TrainData(rows, **made).at(step)
        again = walked.at(step)
        for other in (fresh, again):
            assert (other.targets, other.tokens, other.epoch) == (
                straight[step].targets,
                straight[step].tokens,
                straight[step].epoch,
            )
            assert all(map(equal, other.micro_batches, straight[step].micro_batches))


@pytest.mark.parametrize("packing", [True, False])
def test_two_processes_with_half_the_accumulation_see_the_same_steps(rows, packing):
    made = {**SETTINGS, "packing": packing, "batch_size": 3}
    one = TrainData(rows, **{**made, "accumulation": 4})
    two = [TrainData(rows, **made, world=2, rank=rank) for rank in range(2)]
    assert one.total_steps(None, 2) == two[0].total_steps(None, 2)
    for step in range(one.total_steps(None, 2)):
        whole, parts = one.at(step), [data.at(step) for data in two]
        for part in parts:
            assert (part.targets, part.tokens, part.epoch) == (whole.targets, whole.tokens, whole.epoch)
        for number, batch in enumerate(whole.micro_batches):
            assert equal(batch, parts[number % 2].micro_batches[number // 2])
        assert sum(len(part.micro_batches) for part in parts) == len(whole.micro_batches)


def test_targets_count_the_whole_step_over_all_processes(rows):
    for rank in range(3):
        step = TrainData(rows, **SETTINGS, world=3, rank=rank).at(0)
        everyone = [TrainData(rows, **SETTINGS, world=3, rank=other).at(0) for other in range(3)]
        counted = sum(len(batch.targets) for part in everyone for batch in part.micro_batches)
        assert step.targets == counted > sum(len(batch.targets) for batch in step.micro_batches)


def test_a_process_without_a_micro_batch_gets_an_empty_list(document):
    data = [TrainData([document(20)], **SETTINGS, world=2, rank=rank) for rank in range(2)]
    assert len(data[0].at(0).micro_batches) == 1 and data[1].at(0).micro_batches == []
    assert data[1].at(0).targets == 1


def test_packed_rows_have_a_fixed_length_and_padded_ones_that_of_the_longest(rows):
    packed = TrainData(rows, **SETTINGS).at(0).micro_batches
    assert {batch.input_ids.shape for batch in packed} == {(2, 32)}
    for batch in TrainData(rows, **{**SETTINGS, "packing": False}).at(0).micro_batches:
        assert batch.input_ids.shape[1] == max(end for _, _, end in batch.documents)
        assert len(batch.documents) == 2


def test_when_a_packed_row_comes_says_nothing_of_what_it_holds(document):
    draw = random.Random(2)
    rows = [document(min(60, max(2, int(draw.lognormvariate(3, 0.5))))) for _ in range(3000)]
    data = TrainData(rows, **{**SETTINGS, "max_length": 64})
    early, late = [], []
    for epoch in range(5):
        counts = [len(shape.documents) / shape.rows for shape in data.shapes(epoch)]
        early += counts[: len(counts) // 2]
        late += counts[len(counts) // 2 :]
    means = [sum(part) / len(part) for part in (early, late)]
    assert 2.5 < means[0] == pytest.approx(means[1], rel=0.05)  # as packed, the early ones hold half as many


@pytest.mark.parametrize("packing", [True, False])
def test_joined_rows_are_the_same_examples_without_padding(rows, packing):
    made = {**SETTINGS, "packing": packing, "batch_size": 3}
    apart, joined = TrainData(rows, **made), TrainData(rows, **made, join=True)
    for step in range(apart.total_steps(None, 2)):
        a, b = apart.at(step), joined.at(step)
        assert (a.targets, a.tokens, a.examples, a.epoch) == (b.targets, b.tokens, b.examples, b.epoch)
        for one, other in zip(a.micro_batches, b.micro_batches, strict=True):
            assert one.examples == other.examples
            assert other.input_ids.shape == (1, one.tokens)
            assert torch.equal(one.targets, other.targets)
            for (row, start, end), (_, first, last) in zip(one.documents, other.documents, strict=True):
                assert torch.equal(one.input_ids[row, start:end], other.input_ids[0, first:last])
                assert other.position_ids[0, first:last].tolist() == list(range(end - start))
            flat = one.input_ids.flatten()
            assert torch.equal(flat[one.supervised], other.input_ids.flatten()[other.supervised])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("join", [True, False])
def test_the_shapes_of_an_epoch_are_those_of_its_batches(rows, packing, join):
    pair = Encoded([1] * 9, [False, *[True] * 3, False, *[True] * 4], parts=(4, 5), length=9)
    data = TrainData([*rows, pair], **{**SETTINGS, "packing": packing, "join": join})
    batches = [batch for step in range(data.steps_per_epoch(0)) for batch in data.at(step).micro_batches]
    for shape, batch in zip(data.shapes(0), batches, strict=True):
        assert (shape.rows, shape.length) == tuple(batch.input_ids.shape)
        assert shape.documents == tuple(end - start for _, start, end in batch.documents)


def test_the_last_step_of_an_epoch_may_hold_fewer_micro_batches(rows):
    data = TrainData(rows, **{**SETTINGS, "packing": False, "batch_size": 5, "accumulation": 4})
    assert data.steps_per_epoch(0) == 3
    assert [len(data.at(step).micro_batches) for step in range(4)] == [4, 4, 3, 4]
    assert len(data.at(2).micro_batches[-1].documents) == 3


def test_rows_that_were_dropped_or_teach_nothing_are_left_out_and_the_others_keep_their_number(document):
    dropped = Encoded([], [], dropped=True, length=99)
    data = TrainData([dropped, document(4), document(4, 0), document(5)], **SETTINGS)
    assert sorted(examples(data.at(0))) == [1, 3]


# (max_steps, epochs, steps) where an epoch has 11 steps
LENGTHS = [(None, None, 11), (7, None, 7), (40, None, 40), (None, 2.0, 22), (None, 2.5, 28), (None, 0.1, 2)]


@pytest.mark.parametrize(("max_steps", "epochs", "expected"), [*LENGTHS, (20, 2.5, 20), (99, 1.0, 11)])
def test_the_length_of_a_training(document, max_steps, epochs, expected):
    made = {**SETTINGS, "packing": False, "batch_size": 5, "accumulation": 1}
    data = TrainData([document(4)] * 53, **made)
    assert data.total_steps(max_steps, epochs) == expected


def test_nothing_to_train_on_and_overlong_rows_are_refused(document):
    with pytest.raises(DataError, match="no row has a token to learn"):
        TrainData([document(4, 0)], **SETTINGS)
    with pytest.raises(DataError, match=r"train\.max_length: a row has 33 tokens, more than 32"):
        TrainData([document(33)], **SETTINGS)


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=40), batch_tokens=st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_evaluation_sees_every_row_once_in_batches_that_keep_to_their_tokens(lengths, batch_tokens):
    encoded = [Encoded([7] * n, [False] * (n - 1) + [True], length=n) for n in lengths]
    batches = list(eval_batches([*encoded, Encoded([], [], dropped=True)], batch_tokens, 0))
    assert sorted(index for batch in batches for index in batch.examples) == list(range(len(lengths)))
    for batch in batches:
        assert batch.input_ids.numel() <= batch_tokens or batch.input_ids.shape[0] == 1
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
