"""Rows of queries with their passages: what each text becomes, how rows lie, and what is refused."""

from __future__ import annotations

import json

import pytest

from lrft.build.guess import with_format
from lrft.data.collate import collate
from lrft.data.eval_batches import eval_batches
from lrft.data.gate import inspect
from lrft.data.rows import Rows
from lrft.data.show import facts, masked_text, part_names
from lrft.recipe.load import load_recipe
from lrft.registry.axes import FORMATS
from lrft.registry.errors import DataError, RecipeError

ROW = {"query": "what are you ?", "positive": "kind", "negatives": ["two plus", "four"], "task": "what is"}
FORMAT = {"method": "retrieval", "negatives": "negatives"}


def texts(encoded, tokenizer):
    return [tokenizer.convert_ids_to_tokens(one.input_ids) for one in encoded.documents()]


def test_every_text_is_a_document_that_ends_in_the_end_of_text_token(word_tokenizer, renderer):
    tokenizer = word_tokenizer(bos=True)
    settings = {**FORMAT, "instruction": "user {task}\n", "passage_prefix": "model "}
    encoded = renderer(tokenizer, settings).encode(ROW)
    assert texts(encoded, tokenizer) == [
        ["<s>", "user", "what", "is", "\n", *"what are you ?".split(), "</s>"],
        ["<s>", "model", "kind", "</s>"],
        ["<s>", "model", "two", "plus", "</s>"],
        ["<s>", "model", "four", "</s>"],
    ]
    assert encoded.embedded and encoded.whole and not any(encoded.supervised)
    assert encoded.targets == 4 and encoded.label is None and encoded.parts == (10, 4, 5, 4)


def test_columns_may_hold_a_negative_each_and_rows_have_different_numbers(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    made = renderer(tokenizer, {"method": "retrieval", "negatives": ["a", "b"]})
    row = {"query": "you", "positive": "kind", "a": "two", "b": ["four", "five"]}
    assert texts(made.encode(row), tokenizer)[2:] == [["two", "</s>"], ["four", "</s>"], ["five", "</s>"]]
    assert made.encode({**row, "a": [], "b": []}).parts == (2, 2)


def test_a_long_text_loses_its_end_but_for_the_end_of_text_token(word_tokenizer, renderer):
    tokenizer = word_tokenizer(bos=True)
    encoded = renderer(tokenizer, {**FORMAT, "max_tokens": 4}).encode(ROW)
    assert texts(encoded, tokenizer)[0] == ["<s>", "what", "are", "</s>"]
    assert texts(encoded, tokenizer)[1] == ["<s>", "kind", "</s>"]
    assert encoded.truncated and encoded.length == 4 + 3 + 4 + 3
    assert not renderer(tokenizer, {**FORMAT, "max_tokens": 6}).encode(ROW).truncated


def test_a_row_that_does_not_fit_is_dropped_whole(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    encoded = renderer(tokenizer, FORMAT, max_length=8, too_long="drop").encode(ROW)
    assert encoded.dropped and encoded.targets == 0 and not encoded.truncated


def test_the_last_token_of_every_text_is_read_however_rows_lie(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    made = renderer(tokenizer, FORMAT)
    rows = [made.encode(ROW), made.encode({**ROW, "query": "two", "negatives": ["kind and now"]})]
    apart = collate([[rows[0]], [rows[1]]], 1, None, [[0], [1]])
    packed = collate([rows], 1, 40, [[0, 1]])
    evaluated = next(eval_batches(rows, 1000, 1))
    eos = tokenizer.eos_token_id
    for batch in (apart, packed, evaluated):
        assert batch.input_ids.flatten()[batch.supervised].tolist() == [eos] * 7
        assert len(batch.documents) == 7 and batch.labels is None and not batch.pairs
        assert sorted(map(len, batch.texts)) == [3, 4] and sorted(batch.examples) == [0, 1]
    assert apart.texts == packed.texts
    assert apart.texts[0][1] != apart.texts[1][1:][1]
    first, second = apart.texts
    assert first[1] == second[1], "one passage of both rows has one number"
    assert len({*first, *second}) == 6


def test_a_row_is_shown_with_the_name_of_every_text(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    encoded = renderer(tokenizer, FORMAT).encode(ROW)
    assert part_names(encoded) == ("query", "positive", "negative 1", "negative 2")
    lines = masked_text(encoded, tokenizer, colour=False).plain.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(part_names(encoded))


def test_the_gate_counts_texts_and_says_how_to_shorten_them(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    rows = Rows([ROW, ROW], "rows.jsonl", "", lines=[1, 2])
    made = renderer(tokenizer, FORMAT)
    report = inspect([made.encode(row) for row in rows.rows], rows, tokenizer, {tokenizer.eos_token_id}, 8)
    assert (report.embedded, report.pairs, report.supervised) == (2, 0, 8)
    assert ("texts embedded", "8") in facts(report)
    with pytest.raises(DataError, match=r"a row being all of its texts .*data\.format\.max_tokens"):
        report.check(False, "error")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": " "}, "the text in 'query' is empty"),
        ({"positive": ""}, "the text in 'positive' is empty"),
        ({"negatives": ["two", ""]}, "hard negatives are a list of texts"),
        ({"negatives": [{"text": "two"}]}, "hard negatives are a list of texts"),
        ({"negatives": ["kind"]}, "the passage in 'positive' is a hard negative of the row too"),
        ({"positive": ["kind"]}, "column 'positive' holds a list"),
        ({"task": None}, "column 'task' is null"),
    ],
)
def test_a_row_that_cannot_be_told_apart_is_refused(word_tokenizer, renderer, row, message):
    made = renderer(word_tokenizer(), {**FORMAT, "instruction": "{task}\n"})
    with pytest.raises(DataError, match=message):
        made.encode({**ROW, **row})


def test_it_asks_for_no_answer():
    form = FORMATS.get("retrieval")(FORMATS.settings("retrieval"))
    for ask in (lambda: form.asked(ROW), lambda: form.asking("what are you ?")):
        with pytest.raises(DataError, match="no answer"):
            ask()


@pytest.mark.parametrize("given", ["{", "{0}", "{task.name}", "{task!r}"])
def test_an_instruction_that_is_no_template_is_refused(given):
    told = [
        "model.name=x/y",
        "objective=contrastive",
        f"data.format={{method: retrieval, instruction: '{given}'}}",
    ]
    with pytest.raises(RecipeError, match="instruction"):
        load_recipe("smoke/contrastive", told)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("query", "positive"), {"query": "query", "negatives": None}),
        (("anchor", "positive", "negative"), {"query": "anchor", "negatives": "negative"}),
        (("query", "positive", "negatives", "task"), {"query": "query", "negatives": "negatives"}),
    ],
)
def test_the_format_is_guessed_from_its_columns(tmp_path, columns, found):
    row = {name: ["other"] if name == "negatives" else f"the {name}" for name in columns}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    told = [
        "model.name=x/y",
        f"data.train={tmp_path}/rows.jsonl",
        "data.eval=null",
        "data.format=null",
        "eval.tasks=[]",
    ]
    guessed = with_format(load_recipe("smoke/contrastive", told)).recipe.data.format
    assert guessed.method == "retrieval"
    assert {name: getattr(guessed, name) for name in found} == found
