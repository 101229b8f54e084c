"""Rows in a file are the rows that they were, take few bytes, and a disk that is full is a sentence."""

from __future__ import annotations

import errno
import tempfile
import tracemalloc

import pytest

from lrft.data.encoded import Encoded, Notes
from lrft.data.encoded_rows import FEW, EncodedRows
from lrft.data.gate import inspect
from lrft.data.row_sums import record_rows
from lrft.data.steps import TrainData
from lrft.files.failure import WriteError
from lrft.recipe.load import load_recipe

ROWS = [
    Encoded([5, 6, 7], [False, True, True], length=3),
    Encoded([2**31 - 1, 0], [False, True], length=9, truncated=True, notes=Notes(("a",), ("b",), True)),
    Encoded([], [], dropped=True, length=70),
    Encoded([1, 2, 3, 4], [False, True, False, True], length=4, parts=(2, 2), label=0.25, extra_bos=-1),
    Encoded([8], [False], length=1, features=("x=1",), wanted=False, goes_on=True, read_again=3),
    Encoded([9, 9], [False] * 2, length=2, embedded=True, merged=True, apart=True),
]


@pytest.mark.parametrize("few", [10**9, 7, 0])
def test_rows_are_what_they_were_wherever_they_are(few):
    rows = EncodedRows(ROWS[:3], few)
    assert list(rows) == ROWS[:3] and rows[-1] == ROWS[2]
    assert rows != EncodedRows(ROWS)
    rows.extend(ROWS[3:])  # after some were read
    assert list(rows) == ROWS and len(rows) == 6 and rows == EncodedRows(ROWS)
    assert [rows[k] for k in range(6)] == ROWS and rows[-6] == ROWS[0]
    assert rows[1:5:2] == ROWS[1:5:2] and list(reversed(rows)) == ROWS[::-1]
    for index in (6, -7):
        with pytest.raises(IndexError):
            rows[index]
    assert type(rows[0].input_ids[0]) is int and type(rows[0].supervised[0]) is bool
    assert record_rows(rows) == record_rows(ROWS)
    assert EncodedRows(few=few)[:] == []


def test_what_is_cut_into_steps_is_the_same(monkeypatch):
    drawn = [Encoded([k % 90 + 1] * (k % 13 + 2), [False] + [True] * (k % 13 + 1)) for k in range(60)]
    settings = {"batch_size": 2, "accumulation": 2, "max_length": 32, "packing": True, "seed": 1, "pad_id": 0}
    for one, other in zip(
        *([TrainData(r, **settings).at(k) for k in range(4)] for r in (drawn, EncodedRows(drawn, 8))),
        strict=True,
    ):
        assert (one.targets, one.tokens, one.examples) == (other.targets, other.tokens, other.examples)
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert a.input_ids.equal(b.input_ids) and a.supervised.equal(b.supervised)


def test_many_rows_are_not_held_in_memory():
    row = Encoded(list(range(1000, 1200)), [False] * 50 + [True] * 150, length=200)
    tracemalloc.start()
    rows = EncodedRows(few=0)
    for _ in range(20):
        rows.extend([row] * 500)
        rows.extend(ROWS[:1])
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tokens = sum(len(one.input_ids) for one in rows)
    assert tokens == 20 * (500 * 200 + 3) and rows[777] == row and rows[-1] == ROWS[0]
    assert held < 6 * tokens  # 16 where they are lists of numbers that are shared
    assert FEW < 2**24 and most < 10 * tokens


def test_a_disk_that_is_full_is_told(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(WriteError, match=r"the file of the rows' tokens: could not be written .*TMPDIR"):
        EncodedRows(ROWS, 0)


def test_a_training_on_rows_in_a_file_is_the_one_on_rows_in_memory(tiny, tmp_path, monkeypatch):
    from lrft.api.training.train import train

    recipe = "recipes/smoke/lora.yaml"
    same = [f"model.name={tiny()}", "train.max_steps=3", "train.device=cpu", "quantization=none"]
    train(load_recipe(recipe, same), tmp_path / "one")
    monkeypatch.setattr("lrft.data.encode.EncodedRows", lambda: EncodedRows(few=0))
    train(load_recipe(recipe, same), tmp_path / "two")
    first, second = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    assert records[0].count("\n") == 3


def test_the_gate_counts_rows_in_a_file_as_it_does_in_memory(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny())

    class Places:
        def where(self, index):
            return f"row {index}"

    rows = [*ROWS[:3], ROWS[0], ROWS[3]]
    plain, away = (inspect(one, Places(), tokenizer, {7}, 8) for one in (rows, EncodedRows(rows, 0)))
    assert plain == away and plain.duplicates == 1 and plain.first["duplicates"] == ("row 3",)
