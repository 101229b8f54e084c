"""`lrft data augment`: questions from rows, answers as rows, each with its source, and going on after a kill."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lrft.api.asking.augment import augment_rows, read_template
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.commands.data import app
from lrft.data.rewrite import Rewriting
from lrft.evaluation.sampling import Sampling
from lrft.recipe.load import load_recipe
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, UsageError
from tests.data.in_bfloat16 import in_bfloat16
from tests.each import each

FORM = FORMATS.get("prompt_completion")(parse_choice(FORMATS, "prompt_completion"))
ROW = {"prompt": "What is two plus two? ", "completion": " four", "id": 7}
ROWS = [{"prompt": f"what is {k} plus {k * k}?", "completion": f" {k + k * k}"} for k in range(6)]
DRAWN = Sampling(temperature=1.0, seed=3)


def rewriting(template="Say otherwise: {prompt}", into="prompt"):
    return Rewriting(template, into, FORM)


def test_an_answer_takes_the_place_of_a_column_and_white_space_stays():
    made = rewriting().written(ROW, "\nHow much is two and two?\n", {"from": "f:1"})
    assert made == {**ROW, "prompt": "How much is two and two? ", "augmented": {"from": "f:1"}}
    assert rewriting(into="completion").written(ROW, "4", {})["completion"] == " 4"
    assert rewriting().question(ROW) == "Say otherwise: What is two plus two? "


def test_an_answer_may_be_a_row_alone_or_within_a_fence():
    whole = '{"prompt": "a", "completion": "b"}'
    for answer in (whole, f"```json\n{whole}\n```", f"\n```\n{whole}```"):
        assert rewriting(into=None).written(ROW, answer, {"from": "f:1"}) == {
            "prompt": "a",
            "completion": "b",
            "augmented": {"from": "f:1"},
        }


@each(
    ("answer", "into", "why"),
    [
        (" \n", "prompt", "empty"),
        (" What is two plus two?\n", "prompt", "unchanged"),
        ("here you are: {}", None, "no JSON object"),
        ('{"prompt": "a", "completion"', None, "no JSON object"),
        ('["a"]', None, "no JSON object"),
        ("{}", None, "no JSON object"),
        ('{"prompt": "a"}', None, "no row of the format"),
        ('{"prompt": "a", "completion": null}', None, "no row of the format"),
    ],
)
def test_what_makes_no_row_says_why(answer, into, why):
    assert rewriting(into=into).written(ROW, answer, {}) == why


@each(
    ("template", "said"),
    [
        ("Say otherwise", "names no column"),
        ("{prompt", "is no template"),
        ("{}", "only column names"),
        ("{prompt!r}", "only column names"),
        ("{prompt.x}", "only column names"),
    ],
)
def test_a_template_that_no_row_fills_is_refused(template, said):
    with pytest.raises(UsageError, match=said):
        rewriting(template).check()


def test_a_row_without_the_column_is_named_with_what_it_has():
    with pytest.raises(DataError, match=r"'answer' holds no text.*prompt, completion, id"):
        rewriting("{answer}", "prompt").question(ROW)
    with pytest.raises(DataError, match="'id' holds no text"):
        rewriting("{prompt}", "id").question(ROW)


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides)` -> a loaded recipe over rows written here, with ask.txt beside them."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "ask.txt").write_text("Say otherwise: {prompt}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 1, batch_size: 4, max_length: 64, device: cpu}\n"
        "adapter: {method: lora, rank: 2}\n"
        "optimizer: {lr: 0.3}\n"
        "eval: {batch_tokens: 64}\n"
    )
    return lambda *overrides: load_recipe(path, list(overrides))


@pytest.fixture
def all_stopped(monkeypatch):
    """Random models rarely end an answer; here each that was cut off counts as ended."""
    monkeypatch.setattr("lrft.evaluation.answering.Given.__init__", _ended)


def _ended(self, row, tokens, stopped):
    for name, value in (("row", row), ("tokens", tokens), ("stopped", True)):
        object.__setattr__(self, name, value)


def test_a_killed_command_goes_on_to_the_same_bytes(recipe, tmp_path, all_stopped):
    words = (tmp_path / "ask.txt", tmp_path / "more.jsonl", "prompt", None, 2, DRAWN, 5)
    found = augment_rows(recipe(), *words)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("more*")}
    rows = [json.loads(line) for line in files["more.jsonl"].splitlines()]
    assert found["rows"] == len(rows) > 8 and found["rows"] + sum(found["refused"].values()) == 12
    assert [row["augmented"]["draw"] for row in rows[:2]] == [0, 1]
    assert rows[0]["augmented"]["from"] == f"{tmp_path}/rows.jsonl:1" and rows[0]["completion"] == " 0"
    assert rows[0]["prompt"] != rows[1]["prompt"]
    answers = tmp_path / "more.answers.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:5]) + b'{"row": 5, "pro')
    (tmp_path / "more.jsonl").unlink()
    assert augment_rows(recipe(), *words) == {**found, "before": 5}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("more*")} == files
    again = read_text(recipe(f"data.train={tmp_path / 'more.jsonl'}").recipe)
    assert len(again.train) == len(rows) and again.report.unread == {"augmented": len(rows)}
    with pytest.raises(UsageError, match="generated with sampling"):
        augment_rows(recipe(), *words[:5], Sampling(temperature=1.0, seed=4), 5)


def test_answers_in_another_precision_are_others(recipe, tiny, tmp_path, all_stopped):
    """Both have the fingerprint of one model, and answer otherwise."""
    model = in_bfloat16(tiny(), tmp_path / "model")
    words = (tmp_path / "ask.txt", tmp_path / "more.jsonl", "prompt", None, 1, DRAWN, 5)
    augment_rows(recipe(f"model.name={model}"), *words)
    with pytest.raises(UsageError, match='were generated with dtype "float32", not "bfloat16"'):
        augment_rows(recipe(f"model.name={model}", "model.dtype=bfloat16"), *words)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(UsageError, match="were generated with config"):
        augment_rows(recipe(f"model.name={model}"), *words)


def test_what_an_editor_writes_around_a_template_is_no_part_of_it(tmp_path):
    (tmp_path / "ask.txt").write_bytes("\ufeffSay: {prompt}\r\nAnd so on.\r\n".encode())
    assert read_template(tmp_path / "ask.txt") == "Say: {prompt}\r\nAnd so on."


def test_stages_without_programs_are_refused(recipe, tmp_path):
    recipe()
    words = ["augment", str(tmp_path / "recipe.yaml"), "--prompt", str(tmp_path / "ask.txt")]
    words += ["--out", str(tmp_path / "more.jsonl"), "--max-new-tokens", "2", "--stages", "4"]
    shown = CliRunner().invoke(app, words)
    assert isinstance(shown.exception, UsageError) and "--stages 4: there are none" in str(shown.exception)


def test_a_run_is_asked_as_it_was_taught_and_answers_otherwise(recipe, tmp_path, all_stopped):
    train(recipe(), tmp_path / "run", resume=False)
    rows = {}
    for name, run in (("base", None), ("run", tmp_path / "run")):
        out = tmp_path / f"{name}.jsonl"
        found = augment_rows(recipe(), tmp_path / "ask.txt", out, "prompt", run, 1, DRAWN, 4)
        assert found["rows"] > 3
        rows[name] = [json.loads(line) for line in (tmp_path / f"{name}.answers.jsonl").open()]
    assert rows["run"][0]["prompt"].endswith("Say otherwise: what is 0 plus 0?")
    assert "<|im_start|>user" in rows["base"][0]["prompt"] and "<|im_start|>" not in rows["run"][0]["prompt"]
    assert [one["output"] for one in rows["run"]] != [one["output"] for one in rows["base"]]
    told = json.loads((tmp_path / "run.jsonl").open().readline())
    assert told["augmented"]["by"] == "run"


def test_answers_that_are_cut_off_are_counted_and_make_no_row(recipe, tmp_path):
    words = ["augment", str(tmp_path / "recipe.yaml"), "--prompt", str(tmp_path / "ask.txt")]
    words += ["--out", str(tmp_path / "more.jsonl"), "--max-new-tokens", "2"]
    recipe()
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "0 rows; no row of 6 cut off" in shown.stdout and (tmp_path / "more.jsonl").read_text() == ""


@each(
    ("change", "said"),
    [
        ({"out": "more.csv"}, "ends in .jsonl"),
        ({"prompt": "gone.txt"}, "cannot be read as a text"),
        ({"times": 2}, "add --temperature"),
        ({"max_new_tokens": 0}, "at least one token"),
    ],
)
def test_words_that_mean_nothing_are_refused(change, said, recipe, tmp_path):
    words = {"prompt": "ask.txt", "out": "more.jsonl", **change}
    for key in ("prompt", "out"):
        words[key] = tmp_path / words[key]
    with pytest.raises(UsageError, match=said):
        augment_rows(recipe(), **words)
