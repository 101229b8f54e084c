"""Tables without a line of names, with other separators, and lines that are parted into columns."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from lrft.data import json_rows
from lrft.data.sources import read_rows
from lrft.data.text_lines import IndexedLines
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.config import Source
from lrft.registry.errors import DataError, RecipeError

COLA = 'gj04\t1\t\tOur friends won\'t buy this.\ngj04\t0\t*\tThe "car" honked down.\n'


def read(path, **settings):
    return read_rows(Source(source=str(path), **settings), "train")


@pytest.fixture
def cola(tmp_path):
    path = tmp_path / "cola.tsv"
    path.write_text(COLA)
    return path


def test_a_file_without_names_is_given_them(cola):
    rows = read(cola, header=["from", "label", "mark", "sentence"])
    assert len(rows) == 2 and rows.where(0).endswith("cola.tsv:1")
    assert rows[1] == {"from": "gj04", "label": "0", "mark": "*", "sentence": 'The "car" honked down.'}
    assert read(cola, header=False)[0]["column_4"] == "Our friends won't buy this."
    with pytest.raises(
        DataError, match=r"cola\.tsv:1: .* where the first line is a row, write header: false"
    ):
        read(cola)


def test_a_compressed_table_and_a_limit(tmp_path):
    with gzip.open(tmp_path / "cola.tsv.gz", "wt") as file:
        file.write(COLA)
    assert len(read(tmp_path / "cola.tsv.gz", header=False, limit=1)) == 1


def test_a_csv_may_be_parted_by_another_character(tmp_path):
    (tmp_path / "a.csv").write_text('prompt;reply\n"1;2";"three\nlines"\n')
    rows = read(tmp_path / "a.csv", separator=";")
    assert rows[0] == {"prompt": "1;2", "reply": "three\nlines"}


def test_lines_of_a_text_file_are_parted_into_columns(tmp_path, monkeypatch):
    path = tmp_path / "e2e.txt"
    path.write_text(
        "name : Loch Fyne | food : French||Loch Fyne serves French food.\n\nname : A||A, it is.\r\n"
    )
    given = {"row": "line", "separator": "||", "header": ["mr", "ref"]}
    small = read(path, **given)
    assert [small[k] for k in range(2)] == [
        {"mr": "name : Loch Fyne | food : French", "ref": "Loch Fyne serves French food."},
        {"mr": "name : A", "ref": "A, it is."},
    ]
    assert small.where(1).endswith("e2e.txt:3")
    monkeypatch.setattr(json_rows, "LARGE", 1)
    large = read(path, **given)
    assert isinstance(large.rows, IndexedLines) and list(large) == list(small)


@pytest.mark.parametrize(
    ("name", "text", "given", "message"),
    [
        ("a.tsv", COLA, {"header": ["a", "b"]}, r"a\.tsv:1: 4 fields where header names 2: a, b"),
        ("a.tsv", COLA + "x\ty\n", {"header": False}, r"a\.tsv:3: 2 fields where the header has 4"),
        ("a.tsv", "a\tb\n1\t2\n", {"header": ["a", "b"]}, r":1: the file names its columns itself; write header: true"),
        ("a.tsv", "a\ta\n1\t2\n", {}, r"the column 'a' twice; where the first line is a row, write header: false"),
        ("a.tsv", COLA, {"header": ["a", "a", "b", "c"]}, r"data\.train\.header: names are all different"),
        ("a.tsv", COLA, {"header": []}, r"data\.train\.header: names are all different, and there is at least one"),
        ("a.csv", "a||b\n1||2\n", {"separator": "||"}, r"a\.csv:1: columns of such a file are parted by one character"),
        ("a.jsonl", '{"a": 1}\n', {"header": False}, r"data\.train\.header: is about \.csv and \.tsv files"),
        ("a.txt", "a||b\n", {"separator": "||"}, r"data\.train\.separator: is about .* a row a line has row: line"),
        ("a.txt", "a||b\n", {"separator": "||", "row": "line"}, r"train\.separator: columns of a \.txt file need both"),
        ("a.txt", "a||b\n", {"header": ["a"], "row": "line"}, r"train\.header: columns of a \.txt file need both"),
        (
            "a.txt", "a||b\nc||d||e\n", {"separator": "||", "row": "line", "header": ["a", "b"]},
            r"a\.txt:2: 3 columns between '\|\|' where header names a, b",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_so_is_told_with_its_line(tmp_path, name, text, given, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read(tmp_path / name, **given))


def test_a_hub_data_set_has_no_header():
    with pytest.raises(
        DataError, match=r"data\.train\.header: is about files, and openai/gsm8k is a hub data set"
    ):
        read("openai/gsm8k", header=False)


def test_recipes_that_say_nothing_keep_their_hash(tmp_path):
    def hashed(train):
        return recipe_hash(load_recipe("smoke/lora", ["model.name=x/y", f"data.train={train}"]).recipe)

    (tmp_path / "a.tsv").write_text(COLA)
    plain = hashed(f"{{source: {tmp_path}/a.tsv}}")
    assert plain == hashed(f"{{source: {tmp_path}/a.tsv, header: true, separator: null}}")
    assert plain != hashed(f"{{source: {tmp_path}/a.tsv, header: false}}")
    with pytest.raises(RecipeError, match=r"data\.train\.header"):
        hashed(f"{{source: {tmp_path}/a.tsv, header: 3}}")


@pytest.mark.skipif("LRFT_DATA" not in os.environ, reason="needs LRFT_DATA")
def test_cola_and_e2e_are_read_as_published():
    data = Path(os.environ["LRFT_DATA"])
    cola = read(data / "glue" / "CoLA_dev.tsv", header=["from", "label", "mark", "sentence"])
    assert len(cola) == 1043 and {row["label"] for row in cola} == {"0", "1"}
    e2e = read(data / "nlg" / "e2e_valid.txt", row="line", separator="||", header=["mr", "ref"])
    assert len(e2e) == 4672 and all(row["mr"].startswith("name : ") for row in e2e)


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("s.csv", "question;answer\nWhat?;That\n", ";"),
        ("quoted.csv", '\ufeff"question";"answer"\r\n"What, then?";"That"\r\n', ";"),
        ("t.csv", "question\tanswer\nWhat?\tThat\n", "\\t"),
        ("c.tsv", "question,answer\nWhat?,That\n", ","),
    ],
)
def test_a_table_between_other_characters_is_told_what_to_write(tmp_path, name, content, separator):
    path = tmp_path / name
    path.write_bytes(content.encode())
    with pytest.raises(DataError, match=rf'{name}:1: .* write separator: "{re.escape(separator)}"'):
        read(path)
    assert list(read(path, separator=separator.replace("\\t", "\t"))[0]) == ["question", "answer"]


def test_one_column_is_read_as_one_where_its_separator_is_written(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("yes; no\na; b\n")
    assert list(read(path, separator=",")) == [{"yes; no": "a; b"}]
    path.write_text("plain\na; b\n")
    assert list(read(path)) == [{"plain": "a; b"}]
    path.write_text("a; b\n")
    assert list(read(path, header=["said"])) == [{"said": "a; b"}]
    assert list(read(path, header=False)) == [{"column_1": "a; b"}]


def test_lines_that_end_in_carriage_returns_are_told_so(tmp_path):
    path = tmp_path / "old.csv"
    path.write_bytes(b"question,answer\rWhat?,That\r")
    with pytest.raises(DataError, match=r"old\.csv:1: its lines end in carriage returns alone; save it"):
        read(path)
