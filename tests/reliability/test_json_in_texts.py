"""JSON that stands in a text, of a row, a recipe or a model's answer: read as rows are, and refused in a sentence."""

from __future__ import annotations

import json

import pytest

from lrft.api.asking.augment import write_rows
from lrft.data.formats._turns import checked, tools_of
from lrft.data.formats.sharegpt import ShareGPT
from lrft.data.json_rows import read_json, read_json_lines
from lrft.data.rewrite import Rewriting
from lrft.recipe.load import load_recipe
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.json import parse_text

DEEP = "[" * 100_000 + "]" * 100_000
HALF = '"\\ud800"'
ODD = {
    "deep": (DEEP, "nested too deeply"),
    "half": (HALF, "half a character"),
    "NaN": ("NaN", "NaN is not JSON"),
    "-Infinity": ("-Infinity", "-Infinity is not JSON"),
    "too large": ("1e400", "too large for a number"),
    "digits": ("9" * 5000, "4,300 digits"),
    "twice": ('{"b": 1, "b": 2}', "twice"),
    "torn": ('{"b": ', "Expecting"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_text_that_holds_what_json_has_not_is_no_json(kind):
    held, why = ODD[kind]
    with pytest.raises(ValueError, match=why):
        parse_text(f'{{"a": {held}}}')


def test_a_text_that_is_json_is_what_it_says():
    assert parse_text(' {"a": ["\\u00e9", 1, 1.5, null, true, "\\ud83d\\ude00"]}\n') == {
        "a": ["é", 1, 1.5, None, True, "😀"]
    }


@pytest.mark.parametrize("kind", ODD)
def test_an_answer_that_no_file_of_rows_can_hold_is_counted_and_not_written(kind, tmp_path):
    form = FORMATS.get("prompt_completion")(parse_choice(FORMATS, "prompt_completion"))
    answer = f'{{"prompt": "a", "completion": "b", "more": {ODD[kind][0]}}}'
    rewriting = Rewriting("{prompt}", None, form)
    made = [
        rewriting.written({"prompt": "x"}, one, {}) for one in (answer, answer.replace(ODD[kind][0], "1"))
    ]
    assert write_rows(tmp_path / "more.jsonl", made) == (1, {"no JSON object": 1})
    (row,) = read_json_lines(tmp_path / "more.jsonl")[0]
    assert row["more"] == 1


@pytest.mark.parametrize("kind", ODD)
def test_tools_and_calls_that_are_no_json_are_refused_and_arguments_stay_a_text(kind):
    held, why = ODD[kind]
    with pytest.raises(DataError, match=why):
        tools_of(f'[{{"name": "f", "parameters": {held}}}]', "tools")
    calls = ShareGPT(parse_choice(FORMATS, "sharegpt"))
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": ""}]}
    row["conversations"][1]["value"] = f'{{"name": "f", "arguments": {held}}}'
    with pytest.raises(DataError, match=why):
        calls.example(row)
    call = {"type": "function", "function": {"name": "f", "arguments": f'{{"a": {held}}}'}}
    message = checked({"role": "assistant", "content": "", "tool_calls": [call]}, 1)
    assert message["tool_calls"][0]["function"]["arguments"] == f'{{"a": {held}}}'


@pytest.mark.parametrize("kind", ODD)
def test_a_file_of_tools_that_is_no_json_is_told_by_its_key(kind, tmp_path):
    (tmp_path / "tools.json").write_text(f'[{{"name": "f", "parameters": {ODD[kind][0]}}}]')
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name: {tmp_path}}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, format: {{method: chat, tools: {tmp_path}/tools.json}}}}\n"
    )
    with pytest.raises(RecipeError, match=r"data\.format\.tools: .* is not valid JSON"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_first_line_of_a_json_file_may_be_as_deep_as_it_likes(tmp_path):
    (tmp_path / "rows.json").write_text(f'{{"a": {DEEP}}}\n{{"a": 1}}\n')
    with pytest.raises(DataError, match=r"rows\.json:1: nested too deeply"):
        read_json(tmp_path / "rows.json")
