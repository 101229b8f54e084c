"""The features of rows: read by column, carried document by document into the batches of training and scoring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrft.data.encoded import Notes
from lrft.data.eval_batches import eval_batches
from lrft.data.features import FeatureColumns, counted, placed_features
from lrft.data.prepare import prepare
from lrft.data.rows import Rows
from lrft.data.steps import TrainData
from lrft.registry.errors import DataError

COLUMNS = FeatureColumns(("language", "task"), ("language=sw", "language=yo", "task=qa", "task=ner"))
ROWS = [
    {"prompt": "what is two", "completion": "four", "language": "sw", "task": "qa"},
    {"prompt": "what is", "completion": "five six", "language": None, "task": ["qa", "ner"]},
    {"prompt": "you", "completion": "are kind", "language": "yo", "task": None},
]
READ = [("language=sw", "task=qa"), ("task=qa", "task=ner"), ("language=yo",)]


@pytest.fixture
def features_of(word_tokenizer, renderer):
    made = renderer(word_tokenizer(), "prompt_completion")
    made.features = COLUMNS
    return made


def test_a_column_is_a_feature_by_its_value_a_list_several_and_null_none():
    assert [COLUMNS.of(row) for row in ROWS] == READ
    assert FeatureColumns(("n", "yes")).of({"n": 3, "yes": True}) == ("n=3", "yes=true")
    assert FeatureColumns().of({"n": 3}) == ()


def test_equal_rows_share_one_tuple():
    assert COLUMNS.of(ROWS[0]) is COLUMNS.of(dict(ROWS[0]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "qa"}, r"made.jsonl row 1: data\.features names column 'language', and the row has task"),
        ({"language": "en", "task": "qa"}, r"holds 'en', and the adapter goes by sw, yo; name it there"),
        ({"language": {"a": 1}, "task": "qa"}, r"holds \{'a': 1\}; a feature is a text"),
    ],
)
def test_what_is_no_known_feature_is_refused_with_its_row(row, message):
    with pytest.raises(DataError, match=message):
        placed_features(Rows([ROWS[0], row], "made.jsonl", ""), COLUMNS)


def test_columns_that_are_features_are_not_told_as_unread():
    notes = Notes(unwritten=("system", "language"), unread=("id", "task"), left_out=True)
    assert COLUMNS.read(notes) == Notes(("system",), ("id",), True)
    assert FeatureColumns().read(notes) is notes


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("join", [True, False])
def test_every_document_of_a_batch_has_those_of_its_row(features_of, packing, join):
    prepared = prepare(Rows(ROWS, "made.jsonl", ""), features_of)
    assert [row.features for row in prepared.encoded] == READ and not prepared.report.unread
    settings = {"batch_size": 2, "accumulation": 1, "max_length": 32, "seed": 1, "pad_id": 0}
    data = TrainData(prepared.encoded, **settings, packing=packing, join=join)
    seen = []
    for step in range(data.steps_per_epoch(0)):
        for batch in data.at(step).micro_batches:
            assert batch.features == tuple(READ[index] for index in batch.examples)
            assert batch.to("cpu").features == batch.features and len(batch.documents) == len(batch.features)
            seen += batch.examples
    assert sorted(seen) == [0, 1, 2]
    scored = list(eval_batches(prepared.encoded, 64, 0))
    assert all(b.features == tuple(READ[index] for index in b.examples) for b in scored)


def test_both_answers_of_a_pair_have_them(word_tokenizer, renderer):
    made = renderer(word_tokenizer(), {"method": "preference", "render": "plain"})
    made.features = FeatureColumns(("task",))
    row = {"prompt": "what is two", "chosen": "four", "rejected": "five", "task": "qa"}
    assert [document.features for document in made.encode(row).documents()] == [("task=qa",)] * 2


def test_a_row_that_is_asked_has_them(features_of):
    assert [features_of.question(row).features for row in ROWS] == READ


def test_they_are_counted_by_name():
    assert counted(READ) == {"language=sw": 1, "language=yo": 1, "task=ner": 1, "task=qa": 2}


def test_without_columns_a_batch_has_none(word_tokenizer, renderer):
    made = renderer(word_tokenizer(), "prompt_completion")
    (encoded,) = prepare(Rows(ROWS[:1], "made.jsonl", ""), made).encoded
    assert encoded == replace(encoded, features=())
    assert next(iter(eval_batches([encoded], 64, 0))).features == ()
