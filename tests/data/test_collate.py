from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data.collate import collate
from lrft.data.encoded import Encoded


def encoded(ids, wanted):
    return Encoded(ids, [index in wanted for index in range(len(ids))], length=len(ids))


def test_a_packed_batch_worked_by_hand():
    a, b, c = encoded([11, 12, 13], {1, 2}), encoded([21, 22], {1}), encoded([31, 32, 33, 34], {3})
    batch = collate([[a, b], [c]], pad_id=0, length=6, examples=[[7, 3], [5]])
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 0], [31, 32, 33, 34, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert batch.documents == ((0, 0, 3), (0, 3, 5), (1, 0, 4))
    assert batch.supervised.tolist() == [0, 1, 3, 8]
    assert batch.targets.tolist() == [12, 13, 22, 34]
    assert batch.examples == (7, 3, 5)
    assert batch.tokens == 9
    assert {t.dtype for t in (batch.input_ids, batch.position_ids, batch.supervised, batch.targets)} == {
        torch.int64
    }


def test_without_a_length_rows_are_as_long_as_the_longest():
    batch = collate([[encoded([1], set())], [encoded([2, 3], {1})]], 9, None, [[0], [1]])
    assert batch.input_ids.tolist() == [[1, 9], [2, 3]]
    assert batch.supervised.tolist() == [2] and batch.targets.tolist() == [3]


def test_a_first_token_marked_as_target_is_not_predicted_from_the_document_before():
    batch = collate([[encoded([1, 2], {1}), encoded([3, 4], {0, 1})]], 0, None, [[0, 1]])
    assert batch.supervised.tolist() == [0, 2] and batch.targets.tolist() == [2, 4]


def test_a_batch_without_targets_has_empty_tensors():
    batch = collate([[encoded([1, 2], set())]], 0, None, [[0]])
    assert batch.supervised.shape == batch.targets.shape == (0,) and batch.targets.dtype == torch.int64


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 tokens does not fit 2"):
        collate([[encoded([1, 2, 3], set())]], 0, 2, [[0]])


documents = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2**12 - 1)), min_size=1, max_size=4)


@given(st.lists(documents, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_target_is_predicted_across_documents(shape):
    token = iter(range(1, 10_000))
    rows = [
        [encoded([next(token) for _ in range(n)], {k for k in range(n) if mask >> k & 1}) for n, mask in row]
        for row in shape
    ]
    batch = collate(rows, 0, None, [[0] * len(row) for row in rows])
    length = batch.input_ids.shape[1]
    for flat, target in zip(batch.supervised.tolist(), batch.targets.tolist(), strict=True):
        row, place = divmod(flat, length)
        assert batch.input_ids[row, place + 1] == target
        assert any(r == row and start <= place and place + 1 < end for r, start, end in batch.documents)
        assert batch.position_ids[row, place + 1] == batch.position_ids[row, place] + 1
    expected = sum(sum(document.supervised[1:]) for row in rows for document in row)
    assert len(batch.targets) == expected
