"""Rows from several sources, held-out rows taken from the training rows, and guessed formats, from recipe to result."""

from __future__ import annotations

import json
import shutil

import pytest

from lrft.api.asking.evaluate import evaluate
from lrft.api.data.show import show_rows
from lrft.api.merging.merge import merge
from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError, UsageError
from lrft.training.folder import RUN, RunFolder

RECIPE = """
model: {{name: {model}, dtype: float32}}
data: {data}
train: {{max_steps: 6, batch_size: 2, max_length: 64, device: cpu, save_every: 2, keep_last: 9}}
adapter: {{method: lora, rank: 2}}
"""
MIXED = "{train: [{source: a.jsonl, repeat: 2.5}, {source: b.jsonl, cap: 3}], eval: [c.jsonl, d.jsonl]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four files of rows with a prompt and a completion, the second of them of words the first has not."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("a", 4), ("b", 9), ("c", 3), ("d", 5)):
        rows = [{"prompt": f"{name} asks {k}", "completion": f" it is {k * 7}"} for k in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def recipe(tiny, files):
    """`recipe(data, overrides...)` -> a loaded recipe on the tiny model."""

    def make(data, *overrides):
        path = files / "recipe.yaml"
        path.write_text(RECIPE.format(model=tiny(), data=data))
        return load_recipe(path, list(overrides))

    return make


@pytest.fixture(scope="module")
def mixed(recipe, tmp_path_factory):
    """A run over two sources, scored on two."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    train(recipe(MIXED, "train.eval_every=3"), folder)
    return folder


def test_a_run_records_the_rows_by_source(mixed):
    found = RunFolder(mixed).read(RUN)["gate"]["sources"]
    assert found == [
        {"source": "a", "rows": 4, "rows_of_an_epoch": 10, "share": 0.769231, "repeats": 2.5},
        {"source": "b", "rows": 9, "rows_of_an_epoch": 3, "share": 0.230769, "repeats": 0.333333},
    ]


def test_the_shares_are_printed_before_the_first_step(recipe, tmp_path, capsys):
    train(recipe(MIXED, "train.max_steps=1"), tmp_path / "run")
    said = capsys.readouterr().err
    assert "source a 4 rows, 10 an epoch (76.9% of it), each 2.5 times" in said
    assert said.index("source b 9 rows, 3 an epoch") < said.index("step 1/1")


def test_of_sources_that_take_turns_it_is_told_which_steps_are_theirs(recipe, tmp_path, capsys):
    apart = "{train: [a.jsonl, b.jsonl], eval: [c.jsonl, d.jsonl], mix: {order: alternating}}"
    train(recipe(apart, "train.max_steps=2"), tmp_path / "run")
    assert "source b 9 rows, of one step in 2" in capsys.readouterr().err
    found = RunFolder(tmp_path / "run").read(RUN)["gate"]["sources"]
    assert found[0] == {"source": "a", "rows": 4, "one_step_of": 2}


def test_the_held_out_loss_is_told_whole_and_by_source(mixed):
    lines = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in scored] == [3, 6]
    for line in scored:
        least, most = sorted((line["eval_loss/c"], line["eval_loss/d"]))
        assert least < line["eval_loss"] < most
    metrics = evaluate(mixed, ["loss"])["adapter"]["loss"].metrics
    assert metrics["loss"] == pytest.approx(scored[-1]["eval_loss"], abs=1e-6)
    assert metrics["loss/c"] == pytest.approx(scored[-1]["eval_loss/c"], abs=1e-6)
    (few,) = evaluate(mixed, ["loss"], limit=2)["adapter"].values()
    assert few.n == 4, "two rows of each"


def test_the_whole_loss_is_that_of_the_files_joined(mixed, files, recipe, tmp_path):
    (tmp_path / "both.jsonl").write_text((files / "c.jsonl").read_text() + (files / "d.jsonl").read_text())
    one = recipe(MIXED.replace("[c.jsonl, d.jsonl]", f"{tmp_path}/both.jsonl"), "train.eval_every=3")
    train(one, tmp_path / "run")
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (mixed, tmp_path / "run")
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    whole = [[line["eval_loss"] for line in some if "eval_loss" in line] for some in lines]
    assert whole[0] == pytest.approx(whole[1], abs=1e-6) and "eval_loss/c" not in lines[1][-1]


def test_a_mixture_resumes_to_the_byte(mixed, recipe, tmp_path):
    cut = shutil.copytree(mixed, tmp_path / "cut")
    (cut / "result.json").unlink()
    shutil.rmtree(cut / "adapter")
    for step in (4, 6):
        shutil.rmtree(cut / "checkpoints" / f"step-{step}")
    train(recipe(MIXED, "train.eval_every=3"), cut, resume=True)
    names = ("adapter/adapter_model.safetensors", "checkpoints/step-6/optimizer.safetensors")
    assert all((cut / name).read_bytes() == (mixed / name).read_bytes() for name in names)


def test_a_mixture_that_changed_is_not_gone_on_with(mixed, recipe, files, tmp_path):
    cut = shutil.copytree(mixed, tmp_path / "cut")
    (cut / "result.json").unlink()
    with pytest.raises(UsageError, match=r"data\.train: "):
        train(recipe(MIXED.replace("2.5", "2"), "train.eval_every=3"), cut, resume=True)


def test_a_list_without_settings_trains_as_one_file_of_their_rows(recipe, files, tmp_path):
    (tmp_path / "both.jsonl").write_text((files / "a.jsonl").read_text() + (files / "b.jsonl").read_text())
    for name, data in (("list", "{train: [a.jsonl, b.jsonl]}"), ("one", f"{{train: {tmp_path}/both.jsonl}}")):
        train(recipe(data), tmp_path / name)
    adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("list", "one")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_one_source_of_a_list_is_repeated(recipe):
    text = read_text(with_guess(recipe("{train: [{source: a.jsonl, repeat: 3}]}")))
    assert text.mixture.visits(0) == sorted([0, 1, 2, 3] * 3)


def test_held_out_rows_are_taken_from_the_one_file(recipe, files, tmp_path, capsys):
    loaded = recipe("{train: b.jsonl, split: 0.34}", "train.eval_every=3")
    text = read_text(with_guess(loaded))
    assert len(text.train) == 6 and len(text.held_out) == 3 and text.overlap[0] == 0
    train(loaded, tmp_path / "run")
    assert "held-out rows 3" in capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = evaluate(tmp_path / "run")["adapter"]["loss"]
    assert found.n == 3 and found.metrics["loss"] == pytest.approx(
        json.loads(lines[-1])["eval_loss"], abs=1e-6
    )
    other = read_text(with_guess(recipe("{train: b.jsonl, split: 3, seed: 1}")))
    assert [row["prompt"] for row in other.held_out] != [row["prompt"] for row in text.held_out]
    same = read_text(with_guess(recipe("{train: b.jsonl, split: 3}", "train.seed=1")))
    assert [row["prompt"] for row in same.held_out] == [row["prompt"] for row in text.held_out]
    shown = show_rows(loaded, 9)
    held = {text.held_out.where(k) for k in range(3)}
    assert len(shown) == 6 and not held & {row.where for row in shown}


def test_rows_held_out_of_a_file_that_changed_are_not_scored(recipe, files, tmp_path):
    """Another draw would hold out rows that were trained on."""
    rows = tmp_path / "own.jsonl"
    rows.write_text((files / "b.jsonl").read_text())
    loaded = recipe(f"{{train: {rows}, split: 3}}", "train.max_steps=1")
    train(loaded, tmp_path / "run")
    assert evaluate(tmp_path / "run", ["loss"])["adapter"]["loss"].n == 3
    rows.write_text((files / "b.jsonl").read_text() + (files / "a.jsonl").read_text())
    with pytest.raises(DataError, match=r"data\.split: the files of data\.train changed since"):
        evaluate(tmp_path / "run", ["loss"])


def with_guess(loaded):
    from lrft.build.guess import with_format

    return with_format(loaded).recipe


@pytest.mark.usefixtures("short_answers")
def test_a_run_over_several_sources_merges(mixed, tmp_path):
    record = merge(mixed, tmp_path / "merged")
    assert record["rows_from"] == "data.eval" and record["rows"] == 8


def test_one_file_alone_is_trained_on_and_its_format_told_and_kept(recipe, tmp_path, capsys):
    train(recipe("a.jsonl"), tmp_path / "run")
    assert (
        "format: prompt_completion, guessed from the columns prompt and completion\n"
        in capsys.readouterr().err
    )
    kept = load_recipe(tmp_path / "run" / "recipe.yaml").recipe
    assert kept.data.format.method == "prompt_completion" and kept.data.eval is None
    written = recipe("{train: a.jsonl, format: prompt_completion}")
    train(written, tmp_path / "written")
    hashes = [RunFolder(tmp_path / name).read(RUN)["recipe_hash"] for name in ("run", "written")]
    assert hashes[0] == hashes[1] == plan(written)["recipe_hash"] == plan(recipe("a.jsonl"))["recipe_hash"]


def test_a_guess_is_checked_with_the_rest_of_the_recipe(recipe, files):
    (files / "pairs.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')
    with pytest.raises(RecipeError, match=r"preference gives pairs, and cross_entropy would learn"):
        plan(recipe("pairs.jsonl"))
    with pytest.raises(RecipeError, match=r"data\.too_long: a row of prompt_completion has a prompt"):
        plan(recipe("{train: a.jsonl, too_long: windows}"))
    (files / "qa.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=r"the columns question and answer \(.*qa\.jsonl:1\) fit no format"):
        plan(recipe("qa.jsonl"))


def test_a_long_text_is_learnt_in_windows_and_scored_once_a_token(recipe, files, tmp_path):
    (files / "long.txt").write_text("one two three four five six seven eight nine ten " * 12)
    data = "{train: long.txt, eval: long.txt, too_long: windows, stride: 40}"
    text = read_text(with_guess(recipe(data)))
    whole = read_text(with_guess(recipe(data.replace("windows, stride: 40", "error"))))
    assert len(text.train) > 3 and len(whole.train) == 1
    assert sum(row.targets for row in text.train) == whole.train[0].targets
    train(recipe(data, "train.eval_every=3"), tmp_path / "run")
    (found,) = evaluate(tmp_path / "run")["adapter"].values()
    assert found.metrics["tokens"] == whole.train[0].targets
    assert (found.n, found.metrics["left_out"], found.metrics["truncated"]) == (1, 0, 0)
    shown = show_rows(recipe(data), 1)
    assert len(shown) == len(text.train) and {row.where for row in shown} == {f"{files}/long.txt:1"}


def test_a_folder_of_shards_for_both_splits_is_refused(recipe, files):
    (files / "shards").mkdir(exist_ok=True)
    for name in "ab":
        shutil.copy(files / f"{name}.jsonl", files / "shards" / f"{name}.jsonl")
    with pytest.raises(
        DataError, match=r"data\.eval: the files of .*shards are those of data\.train.*split: 0\.05"
    ):
        plan(recipe("shards"))
    assert plan(recipe("{train: shards, split: 0.2}"))["data"]["rows"] == 10
