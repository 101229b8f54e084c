"""The identity of encoded rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrft.data.encoded import Encoded
from lrft.data.row_sums import BLOCKS, DIGITS, block_size, first_changed, record_rows

ROW = Encoded([5, 6, 7, 8], [False, False, True, True])


def of(rows):
    return record_rows(rows)["sha256"]


@pytest.mark.parametrize(
    "changed",
    [
        replace(ROW, input_ids=[5, 6, 7, 9]),
        replace(ROW, supervised=[False, True, True, True]),
        replace(ROW, parts=(2, 2)),
        replace(ROW, label=1.0),
        replace(ROW, goes_on=True),
        replace(ROW, read_again=1),
        Encoded([5, 6], [False, True]),
    ],
    ids=lambda row: str(row)[:60],
)
def test_whatever_a_step_sees_of_a_row_counts(changed):
    assert of([ROW, changed]) != of([ROW, ROW])


def test_what_a_step_does_not_see_does_not_count():
    assert of([replace(ROW, truncated=True, length=9, merged=True)]) == of([ROW])


def test_the_order_of_rows_counts_and_so_does_where_one_ends():
    other = replace(ROW, input_ids=[1, 2, 3, 4])
    assert of([ROW, other]) != of([other, ROW])
    assert of([Encoded([1, 2], [True, True]), Encoded([3], [True])]) != of(
        [Encoded([1], [True]), Encoded([2, 3], [True, True])]
    )


def test_rows_tokens_and_targets_are_counted():
    found = record_rows([ROW, ROW, Encoded([], [], dropped=True)])
    assert (found["rows"], found["tokens"], found["targets"]) == (3, 8, 4)


@pytest.mark.parametrize("count", [1, 5, BLOCKS, BLOCKS + 1, 1000])
def test_a_changed_row_is_found_within_its_block(count):
    rows = [replace(ROW, input_ids=[k, 6, 7, 8]) for k in range(count)]
    place = count * 2 // 3
    before = record_rows(rows)
    rows[place] = replace(rows[place], supervised=[False, False, False, True])
    now = record_rows(rows)
    found = first_changed(count, before["digits"], now["digits"])
    assert found is not None and found[0] <= place <= found[1] < count
    assert found[1] - found[0] < block_size(count)
    assert len(now["digits"]) <= BLOCKS * DIGITS


def test_records_that_are_alike_have_no_changed_row():
    assert first_changed(1, record_rows([ROW])["digits"], record_rows([ROW])["digits"]) is None
