"""Sources of one training in formats of their own: read, mixed, held out, recorded and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lrft.api.data.show import show_rows
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.data.rows import Rows
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import DataError, RecipeError
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke" / "_base.yaml"
ASKED = [("one", "1"), ("two", "2"), ("three", "3"), ("four", "4")]
SHAREGPT = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in ASKED]
PLAIN = [{"ask": f"{q}: ", "reply": f"it is {a}"} for q, a in ASKED]
PROMPTED = [{"prompt": f"{q}: ", "completion": a} for q, a in ASKED]
COLUMNS = "{method: prompt_completion, prompt: ask, completion: reply, render: plain}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, rows in {"a": SHAREGPT, "b": PLAIN, "c": PROMPTED}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def recipe(files, tiny):
    """`recipe(*told, train=...)` -> a recipe of these sources, by default a and b, each in its own format."""
    model = tiny()

    def get(*told, train=None):
        train = (
            train
            or f"[{{source: {files}/a.jsonl, format: sharegpt}}, {{source: {files}/b.jsonl, format: {COLUMNS}}}]"
        )
        given = [
            f"model.name={model}",
            "data.eval=null",
            "eval.tasks=[]",
            f"data.train={train}",
            "train.max_length=128",
        ]
        return load_recipe(SMOKE, [*given, "train.device=cpu", "data.format=null", *told])

    return get


def learnt(text):
    """What is learnt of every row, as text."""
    return [
        text.tokenizer.decode([t for t, on in zip(row.input_ids, row.supervised, strict=True) if on])
        for row in text.train
    ]


def test_every_row_is_read_by_the_format_of_its_source(recipe):
    text = read_text(with_format(recipe()).recipe)
    stop = text.tokenizer.eos_token
    assert learnt(text) == [f"{a}{stop}" for _, a in ASKED] + [f"it is {a}{stop}" for _, a in ASKED]
    assert text.tokenizer.decode(text.train[0].input_ids).count("<|im_start|>") > 1
    assert "<|im_start|>" not in text.tokenizer.decode(text.train[4].input_ids)


def test_a_source_without_one_is_of_the_format_of_the_section(recipe, files):
    given = f"[{{source: {files}/a.jsonl, format: sharegpt}}, {{source: {files}/c.jsonl}}]"
    told = recipe("data.format={method: prompt_completion, render: plain}", train=given)
    assert with_format(told) is told
    assert learnt(read_text(told.recipe))[4:] == [f"{a}<|im_end|>" for _, a in ASKED]
    guessed = with_format(recipe(train=given)).recipe
    assert (guessed.data.format.method, guessed.data.train[1].format) == ("prompt_completion", None)


def test_sources_of_different_formats_are_guessed_each_where_nothing_is_said(recipe, files, capsys):
    loaded = with_format(recipe(train=f"[{files}/a.jsonl, {files}/c.jsonl]"))
    methods = [source.format.method for source in loaded.recipe.data.train]
    assert methods == ["sharegpt", "prompt_completion"] and loaded.recipe.data.format.method == "sharegpt"
    said = capsys.readouterr().err
    assert "format of data.train.0: sharegpt" in said and "format of data.train.1: prompt_completion" in said
    with pytest.raises(DataError, match="fit no format that can be guessed"):
        with_format(recipe(train=f"[{files}/a.jsonl, {files}/b.jsonl]"))


def test_held_out_sources_are_guessed_each_too(recipe, files, capsys):
    loaded = with_format(recipe(f"data.eval=[{files}/a.jsonl, {files}/c.jsonl]", train=f"{files}/a.jsonl"))
    assert [source.format and source.format.method for source in loaded.recipe.data.eval] == [
        None,
        "prompt_completion",
    ]
    assert "format of data.eval.1: prompt_completion, guessed from" in capsys.readouterr().err
    assert len(read_text(loaded.recipe).held_out) == 8


def test_where_a_format_is_named_nothing_is_guessed(recipe, files):
    loaded = recipe("data.format=sharegpt", train=f"[{files}/a.jsonl, {files}/c.jsonl]")
    with pytest.raises(DataError, match=r"c\.jsonl:1: the sharegpt format needs column"):
        read_text(with_format(loaded).recipe)


def test_rows_keep_their_format_through_every_choice_of_rows(recipe):
    loaded = with_format(recipe("data.split=3", "data.seed=2"))
    text = read_text(loaded.recipe)
    assert isinstance(text.rows, Rows) and len(text.train) == 5 and len(text.held_out) == 3
    shown = show_rows(loaded, rows=9) + show_rows(loaded, split="eval", rows=9)
    assert sorted(row.format for row in shown) == ["prompt_completion"] * 4 + ["sharegpt"] * 4
    for row in shown:
        assert ("a.jsonl" in row.where) == (row.format == "sharegpt")
        assert row.record()["format"] == row.format and f"format {row.format}" in row.heading()


def test_held_out_sources_say_their_own_too(recipe, files):
    held = f"data.eval=[{{source: {files}/b.jsonl, format: {COLUMNS}}}, {files}/a.jsonl]"
    text = read_text(with_format(recipe(held)).recipe)
    by_source = text.held_out_by_source()
    assert [len(rows) for rows in by_source.values()] == [4, 4]
    assert [row.input_ids for row in by_source["b"]] == [row.input_ids for row in text.train[4:]]
    assert [row.input_ids for row in by_source["a"]] == [row.input_ids for row in text.train[:4]]


def test_a_run_records_them_mixes_them_and_goes_on_unbroken(recipe, files, tmp_path):
    mixed = f"[{{source: {files}/a.jsonl, weight: 2}}, {{source: {files}/c.jsonl, weight: 1}}]"
    steps = ["train.max_steps=4", "train.save_every=2", "train.keep_last=9", "train.batch_size=2"]
    loaded = with_format(recipe(*steps, train=mixed))
    train(loaded, tmp_path / "run", resume=False)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [source["format"]["method"] for source in written["data"]["train"]] == [
        "sharegpt",
        "prompt_completion",
    ]
    assert recipe_hash(load_recipe(tmp_path / "run" / "recipe.yaml").recipe) == recipe_hash(loaded.recipe)
    goes_on_unbroken(loaded, tmp_path / "run", 2, tmp_path / "broken")


def test_a_recipe_without_formats_of_sources_has_the_hash_it_had(recipe, files):
    plain = recipe("data.format=sharegpt", train=f"[{files}/a.jsonl, {files}/a.jsonl]").recipe
    null = f"[{{source: {files}/a.jsonl, format: null}}, {files}/a.jsonl]"
    own = f"[{{source: {files}/a.jsonl, format: sharegpt}}, {files}/a.jsonl]"
    assert recipe_hash(plain) == recipe_hash(recipe("data.format=sharegpt", train=null).recipe)
    assert recipe_hash(plain) != recipe_hash(recipe("data.format=sharegpt", train=own).recipe)


@pytest.mark.parametrize(
    ("own", "told", "message"),
    [
        ("sharegp", "data.format=chat", r"data\.train\.0\.format.*sharegpt"),
        ("{method: sharegpt, nothing: 1}", "data.format=chat", r"data\.train\.0\.format\.nothing"),
        (
            "preference",
            "data.format=chat",
            r"data\.train\.0\.format: preference gives pairs, and data\.format chat",
        ),
        (
            "classify",
            "data.format=null",
            r"data\.train\.1\.format: prompt_completion gives answers, and data\.train\.0",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(recipe, files, own, told, message):
    given = f"[{{source: {files}/a.jsonl, format: {own}}}, {{source: {files}/b.jsonl, format: {COLUMNS}}}]"
    with pytest.raises(RecipeError, match=message):
        recipe(told, train=given)


def test_a_mix_of_whole_texts_and_answers_has_the_traits_of_both(recipe, files):
    own = f"[{{source: {files}/a.jsonl, format: sharegpt}}, {files}/b.jsonl]"
    text = read_text(recipe("data.format={method: text, column: reply}", train=own).recipe)
    assert text.renderer.format.provides == set() and len(text.train) == 8
