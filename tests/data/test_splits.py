"""Both splits before step 1: read, rendered, judged, and compared with the model that is to take them."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from lrft.api.opening.open_run import open_run
from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.text import check_text
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from lrft.training.folder import RUN, RunFolder
from tests.older_run import as_older

CLOCK = "{{ strftime_now('%d %b %Y') }}\n"


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(train, held_out, model=..., overrides...)` -> a loaded recipe over rows written here."""

    def make(train, held_out, *overrides, model: Path | None = None):
        for name, rows in (("train", train), ("held", held_out)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"model: {{name: {model or tiny()}, dtype: float32}}\n"
            f"data: {{train: {tmp_path}/train.jsonl, eval: {tmp_path}/held.jsonl, format: prompt_completion}}\n"
            "train: {max_steps: 2, batch_size: 1, max_length: 64, device: cpu}\n"
            "adapter: {method: lora, rank: 2}\n"
        )
        return load_recipe(path, list(overrides))

    return make


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": " yes"} for prompt in prompts]


def with_template(tiny, tmp_path, template: str) -> Path:
    folder = shutil.copytree(tiny(), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template + (folder / "chat_template.jinja").read_text())
    return folder


@pytest.mark.parametrize("job", ["train", "dry run", "check"])
def test_a_held_out_row_that_cannot_be_read_stops_before_step_1(recipe, tmp_path, job):
    loaded = recipe(rows("a", "b"), [*rows("c"), {"prompt": "d"}])
    with pytest.raises(DataError, match=r"held.jsonl:2: .*needs column 'completion'"):
        if job == "train":
            train(loaded, tmp_path / "run", resume=False)
        elif job == "dry run":
            plan(loaded)
        else:
            check_text(read_text(loaded.recipe), loaded.recipe)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_held_out_row_longer_than_the_positions_is_refused_by_line_and_may_be_dropped(tiny, recipe):
    long = recipe(rows("a"), rows("b", "word " * 1200), model=tiny("gpt2"))
    with pytest.raises(
        DataError, match=r"1 of 2 rows have more tokens .* positions \(1024; first: .*held.jsonl:2\)"
    ):
        read_text(long.recipe)
    dropped = recipe(rows("a"), rows("b", "word " * 1200), "data.too_long=drop", model=tiny("gpt2"))
    text = read_text(dropped.recipe)
    check_text(text, dropped.recipe)
    assert len(text.held_out_encoded()) == 1


def test_a_held_out_row_longer_than_a_training_row_may_be_is_scored_whole(recipe):
    loaded = recipe(rows("a"), rows("word " * 100))
    text = read_text(loaded.recipe)
    check_text(text, loaded.recipe)
    assert len(text.held_out_encoded()[0].input_ids) > 64


def test_rows_in_both_splits_are_counted_and_named(recipe):
    text = read_text(recipe(rows("a", "b", "c"), rows("x", "b", "c")).recipe)
    assert text.overlap[0] == 2
    said = dict(text.facts())["rows in both splits"]
    assert said.startswith("2 (first: ") and "held.jsonl:2" in said


def test_held_out_rows_without_a_target_are_left_out_and_none_but_such_stop(recipe):
    loaded = recipe(
        rows("a"), [{"prompt": "b", "completion": " yes"}], "data.format={method: text, column: prompt}"
    )
    check_text(read_text(loaded.recipe), loaded.recipe)
    empty = recipe(rows("a"), rows("word " * 100), "data.too_long=drop")
    with pytest.raises(DataError, match=r"data.eval: .*no.* row.* a token"):
        check_text(read_text(empty.recipe), empty.recipe)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tiny, recipe, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{k}>" for k in range(9)])
    tokenizer.save_pretrained(folder)
    loaded = recipe(rows("a"), rows("b"), model=folder)
    for job in (lambda: read_text(loaded.recipe), lambda: plan(loaded)):
        with pytest.raises(
            RecipeError, match=r"model.name: .* without an embedding \(1 of them; '<extra8>' is 520"
        ):
            job()


def test_a_template_that_asks_for_the_date_is_told_the_day_of_the_record(tiny, recipe, tmp_path, monkeypatch):
    folder = with_template(tiny, tmp_path, CLOCK)
    form = "data.format={method: prompt_completion, render: chat}"
    days = iter([date(2031, 3, 4), date(2032, 1, 1), date(2033, 1, 1)])

    class Clock(date):
        @classmethod
        def today(cls):
            return next(days)

    monkeypatch.setattr("lrft.api.training.begin.date", Clock)
    loaded = recipe(rows("a", "b"), rows("c"), form, model=folder)
    train(loaded, tmp_path / "run", resume=False)
    run = RunFolder(tmp_path / "run")
    assert run.read(RUN)["date"] == "2031-03-04"
    _, text, _ = open_run(run)
    assert "04 Mar 2031" in text.tokenizer.decode(text.held_out_encoded()[0].input_ids)
    fixed = recipe(rows("a"), rows("c"), form, "data.date=2020-05-06", model=folder)
    text = read_text(fixed.recipe)
    assert "06 May 2020" in text.tokenizer.decode(text.train[0].input_ids)
    assert dict(text.facts())["date the template writes"] == "2020-05-06"


def test_a_resumed_run_sees_the_day_of_its_first_sitting(tiny, recipe, tmp_path, monkeypatch):
    folder = with_template(tiny, tmp_path, CLOCK)
    form = "data.format={method: prompt_completion, render: chat}"
    loaded = recipe(rows("a", "b"), rows("c"), form, "train.save_every=1", "train.keep_last=9", model=folder)
    for day, name in ((date(2031, 3, 4), "whole"), (date(2031, 3, 4), "cut")):
        monkeypatch.setattr(
            "lrft.api.training.begin.date", type("Clock", (date,), {"today": lambda d=day: d})
        )
        train(loaded, tmp_path / name, resume=False)
    (tmp_path / "cut" / "result.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "adapter")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-2")
    monkeypatch.setattr(
        "lrft.build.dataset.date", type("Later", (date,), {"today": lambda: date(2039, 9, 9)})
    )
    train(loaded, tmp_path / "cut", resume=True)
    whole, again = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == again.read_bytes()


def test_a_template_without_a_clock_is_told_no_date(recipe):
    text = read_text(
        recipe(rows("a"), rows("b"), "data.format={method: prompt_completion, render: chat}").recipe
    )
    assert "date the template writes" not in dict(text.facts())


def test_a_held_out_pair_is_as_long_as_its_longer_answer(tiny, recipe):
    pair = {"prompt": "a", "chosen": " b" * 600, "rejected": " c" * 600}
    objective = ["objective=dpo", "data.format=preference", "data.too_long=drop", "train.max_length=64"]
    short = {"prompt": "a", "chosen": " b", "rejected": " c"}
    loaded = recipe([short], [short, pair], *objective, "data.too_long=error", model=tiny("gpt2"))
    assert read_text(loaded.recipe).held_out_report.length_max > 1024


def test_a_run_that_was_packed_before_it_was_asked_is_still_scored(tiny, recipe, tmp_path):
    loaded = recipe(rows("a", "b"), rows("c"), model=tiny("lfm2"))
    train(loaded, tmp_path / "run", resume=False)
    run = RunFolder(tmp_path / "run")
    assert run.read(RUN)["packing"] is False
    written = as_older(run.path) / "recipe.yaml"
    written.write_text(written.read_text().replace("packing: null", "packing: true"))
    _, text, adaptation = open_run(run)
    assert adaptation.packing is False and text.held_out_encoded()


def test_settings_that_fit_the_steps_without_packing_are_not_refused_beforehand(tiny, recipe):
    many = [f"{letter} word" for letter in "abcdefghij"]
    steps = ["~train.max_steps", "train.epochs=1", "schedule.warmup_steps=9"]
    plan(recipe(rows(*many), rows("c"), *steps, model=tiny("lfm2")))
    with pytest.raises(RecipeError, match=r"schedule.warmup_steps"):
        plan(recipe(rows(*many), rows("c"), *steps, "schedule.warmup_steps=11", model=tiny("lfm2")))
