"""`lrft data rank`: sources in order, from states that are the models' own, and going on after a kill."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lrft.api.data.rank import rank_sources
from lrft.api.data.ranking import BASE
from lrft.api.training.train import train
from lrft.build.classes import read_classes
from lrft.build.dataset import read_text
from lrft.commands.data import app
from lrft.evaluation.row_features import measure_rows
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, UsageError
from tests.each import each

WORDS = ("red", "blue", "green", "grey")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides)` -> a loaded recipe whose answers are yes or no."""
    draw = random.Random(0)
    rows = [
        {"prompt": f"is {k} {draw.choice(WORDS)}?", "completion": f" {('yes', 'no')[k % 2]}"}
        for k in range(30)
    ]
    written(tmp_path / "rows.jsonl", rows)
    written(
        tmp_path / "other.jsonl",
        [{"prompt": f"{w} {w} {k}", "completion": " ha ha"} for w in WORDS for k in range(6)],
    )
    path = tmp_path / "target.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 1, batch_size: 4, max_length: 64, device: cpu, save_every: 1}\n"
        "optimizer: {method: adamw, lr: 0.01}\n"
        "adapter: {method: lora, rank: 2}\n"
        "eval: {batch_tokens: 128}\n"
    )
    (tmp_path / "other.yaml").write_text(path.read_text().replace("rows.jsonl", "other.jsonl"))
    return lambda *overrides: load_recipe(path, list(overrides))


@pytest.fixture
def runs(recipe, tmp_path):
    for name, steps in (("one", 1), ("many", 12)):
        train(recipe(f"train.max_steps={steps}", f"train.save_every={steps}"), tmp_path / name, resume=False)
    return [tmp_path / "one", tmp_path / "many"]


def test_states_are_those_of_the_last_token_before_the_answer(recipe):
    chosen = recipe().recipe
    text, model = read_text(chosen), load_model(chosen.model)
    found = read_classes(text, text.rows, text.train, "data.train")
    assert found.names == ("no", "yes") and list(found.gold) == [1, 0] * 15
    states = torch.cat(
        list(measure_rows(model, found.prompts, "states", batch_tokens=128, pad_id=text.pad_id))
    )
    plain = AutoModelForCausalLM.from_pretrained(chosen.model.name, dtype=torch.float32)
    for index in (0, 7, 29):
        whole, prompt = text.train[index], found.prompts[index]
        assert whole.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        assert whole.supervised[len(prompt.input_ids)] and not any(whole.supervised[: len(prompt.input_ids)])
        with torch.no_grad():
            hidden = plain(
                input_ids=torch.tensor([prompt.input_ids]), output_hidden_states=True
            ).hidden_states[-1]
        assert torch.allclose(hidden[0, -1], states[index], atol=1e-4)


def test_a_run_that_learnt_the_answers_is_before_the_base_and_a_killed_order_goes_on(recipe, runs, tmp_path):
    out = tmp_path / "order.json"
    found = rank_sources(recipe(), runs, "logme", out)
    by_name = {one["source"]: one for one in found["sources"]}
    assert found["classes"] == ["no", "yes"] and found["target_rows"] == 30
    assert set(by_name) == {BASE, *map(str, runs)} and found["sources"][0]["source"] == str(runs[1])
    best, base = found["sources"][0], by_name[BASE]
    assert best["behind"] == 0 == best["behind_low"] and base["behind"] == pytest.approx(
        best["score"] - base["score"]
    )
    assert all(one["low"] < one["score"] < one["high"] for one in found["sources"])
    assert json.loads(out.read_text()) == found
    before = {path.name: path.read_bytes() for path in tmp_path.glob("order.*")}
    assert len(before) == 7
    for path in tmp_path.glob("order.*.states.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    out.unlink()
    assert rank_sources(recipe(), runs, "logme", out) == found
    assert {path.name: path.read_bytes() for path in tmp_path.glob("order.*")} == before


def test_texts_like_the_target_s_are_before_others_and_no_run_is_needed(recipe, tmp_path):
    same = tmp_path / "same.yaml"
    same.write_text((tmp_path / "target.yaml").read_text() if recipe() else "")
    found = rank_sources(recipe(), [tmp_path / "other.yaml", same], "textemb", tmp_path / "order.json")
    first, second = found["sources"]
    assert first["source"] == str(same) and first["score"] == pytest.approx(1.0) and first["rows"] == 30
    assert second["score"] < 0.999 and second["rows"] == 24 and found["classes"] is None
    assert second["behind_low"] < second["behind"] < second["behind_high"]


def test_few_rows_are_drawn_by_the_seed(recipe, tmp_path):
    def scores(name, seed):
        sources = [tmp_path / "other.yaml"]
        return rank_sources(recipe(), sources, "textemb", tmp_path / f"{name}.json", 20, seed)["sources"]

    assert scores("a", 1) == scores("b", 1) != scores("c", 2)


def test_the_interval_is_the_jackknife_s():
    from lrft.api.data.rank import _half

    values = [
        1.0,
        2.0,
        3.0,
        4.0,
    ]  # of a mean it is the standard error: (n - 1) / n sum (v - mean)^2 = 3 / 4 * 5
    assert _half(values) == pytest.approx(1.959964 * math.sqrt(3.75))


@each(
    ("words", "said"),
    [
        ({"method": "logme", "sources": ["other.yaml"]}, "logme asks a model that was trained on the source"),
        ({"method": "textemb", "sources": []}, "name the run of a source task"),
        ({"method": "textemb", "sources": ["other.yaml", "other.yaml"]}, "'other' would name files"),
        ({"method": "textemb", "sources": ["other.yaml"], "out": "order.txt"}, "a name that ends in .json"),
        ({"method": "best", "sources": ["other.yaml"]}, "best"),
    ],
)
def test_what_makes_no_order_is_refused(words, said, recipe, tmp_path, monkeypatch):
    loaded = recipe()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        rank_sources(loaded, words["sources"], words["method"], words.get("out", "order.json"))


def test_rows_without_classes_or_too_few_are_refused(recipe, runs, tmp_path):
    loaded = recipe()
    written(tmp_path / "rows.jsonl", [{"prompt": f"say {k}", "completion": f" {k}"} for k in range(30)])
    with pytest.raises(DataError, match="30 rows have 30 different answers, which are no classes"):
        rank_sources(loaded, runs, "logme", tmp_path / "a.json")
    written(tmp_path / "rows.jsonl", [{"prompt": f"say {k}", "completion": f" {k % 2}"} for k in range(8)])
    with pytest.raises(DataError, match="8 rows can be looked at, and an order takes 20"):
        rank_sources(loaded, runs, "logme", tmp_path / "b.json")
    written(tmp_path / "rows.jsonl", [{"prompt": f"say {k}", "completion": " so"} for k in range(30)])
    with pytest.raises(DataError, match="one answer all of them"):
        rank_sources(loaded, runs, "logme", tmp_path / "c.json")


def test_another_order_is_not_written_over(recipe, tmp_path):
    recipe()
    (tmp_path / "order.json").write_text("{}")
    with pytest.raises(UsageError, match="holds another order"):
        rank_sources(recipe(), [tmp_path / "other.yaml"], "textemb", tmp_path / "order.json")


def test_the_command_prints_the_order_and_its_document(recipe, tmp_path, monkeypatch):
    recipe()
    monkeypatch.chdir(tmp_path)
    words = ["rank", "target.yaml", "--method", "textemb", "--source", "other.yaml", "--out", "order.json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "other.yaml" in shown.output and "order.json: textemb by 30 rows of the target" in shown.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found == json.loads((tmp_path / "order.json").read_text())
