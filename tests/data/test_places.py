"""What a check says of rows on one line of a file, whose places are numbers, and of line ends within them."""

from __future__ import annotations

import json

import pytest

from lrft.api.data.check import check_data
from lrft.data.sources import read_rows
from lrft.registry.config import Source

WORDS = "the harbour freezes in January and all of the ferries to the islands stop for weeks"
ROWS = [
    {"prompt": f"Number {name}: {WORDS}", "completion": "yes"}
    for name in ("one", "two", "three", "four", "five", "six")
]
SAID = [*ROWS, {"prompt": f"Number two: {WORDS}!", "completion": "yes"}]


RECIPE = """
model: {{name: {model}, dtype: float32}}
data: {{train: {rows}, format: prompt_completion}}
train: {{max_length: 512}}
"""


def where(path, **settings):
    rows = read_rows(Source(source=str(path), **settings), "train")
    return [rows.where(index) for index in range(len(rows))]


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_that_share_a_line_are_named_by_number(tmp_path, wrapped):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": ROWS} if wrapped else ROWS))
    assert where(path) == [f"{path} row {number}" for number in range(len(ROWS))]
    assert where(path, limit=1) == [f"{path} row 0"]


def test_rows_that_begin_on_lines_of_their_own_are_named_by_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[" + ", ".join(json.dumps(row, indent=1) for row in ROWS[:2]) + "]")
    assert where(path) == [f"{path}:1", f"{path}:4"]


def test_a_check_says_the_same_of_rows_on_one_line_as_of_rows_on_many(tiny, tmp_path):
    found = []
    for name, indent in (("one", None), ("many", 0)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(SAID, indent=indent))
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny(), rows=path))
        record = check_data(tmp_path / "recipe.yaml").record()
        found.append((record["rows_compared"], len(record["near_duplicates"])))
    assert found[0] == found[1] and found[0][0] == len(SAID) and found[0][1] > 0


def test_line_ends_of_windows_within_texts_are_told_and_those_of_rows_are_none(tiny, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,completion\r\na,b\r\n"c\r\nd",e\r\n"f\ng",h\r\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny(), rows=path))
    found = check_data(tmp_path / "recipe.yaml")
    assert found.record()["carriage_returns"] == [f"{path}:3"]
    told = dict(found.facts())["line ends of Windows in texts"]
    assert told.startswith(f"1 rows (first: {path}:3)") and "line feeds" in told
