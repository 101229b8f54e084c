"""Single faults of files of others that once were a traceback, another result without a word, or memory without end."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from lrft.data.sources import read_sources
from lrft.files.append import append
from lrft.lab.sweep.points import points_of
from lrft.model.load import load_config, load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from lrft.registry.config import Source
from lrft.registry.errors import DamagedFile, DataError, RecipeError, UsageError
from lrft.training.folder import RunFolder

ARMS = {
    "a: []\na: [adapter.rank=2]": "is written twice",
    "a: " + "9" * 5000: "has too many digits",
    "a: [1]": "write a name and a list of overrides",
    "a: &x [adapter.rank=2]\n": None,
    "!!python/object:os.x {}": "is not allowed",
    "a" * 100_000 + "[": "arms.yaml",
}


@pytest.mark.parametrize(("text", "said"), ARMS.items(), ids=range(len(ARMS)))
def test_a_file_of_arms_is_read_as_recipes_are(tmp_path, tiny, text, said):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    given = ("smoke/lora", [f"model.name={tiny()}"], path, "loss")
    if said is None:
        assert [point.values for point in points_of(*given)] == [{"arm": "a"}]
        return
    with pytest.raises(UsageError, match="--arms") as refused:
        points_of(*given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_line_without_an_end_takes_no_memory(tmp_path):
    for name in ("rows.jsonl", "rows.csv", "rows.json", "rows.txt"):
        path = tmp_path / name
        path.touch()
        os.truncate(path, 2**40)  # sparse: no byte of it is on the disk
        with pytest.raises(DataError, match=r"more than 67,108,864 bytes|at most 4,294,967,296 are read"):
            read_sources(Source(source=str(path)), "train")


def test_a_line_that_is_added_is_one_of_its_own(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('{"a": 1}')
    append(path, '{"b": 2}\n')
    append(path, '{"c": 3}\n')
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}, {"c": 3}]


def changed(tiny, tmp_path, name, content) -> ModelSection:
    folder = tmp_path / "base"
    shutil.copytree(tiny(), folder)
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    text = content if isinstance(content, str) else json.dumps({**known, **content})
    (folder / name).write_text(text)
    return ModelSection(name=str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", '{"eos_token_id": 2'),
        ("generation_config.json", "[]"),
        ("generation_config.json", {"eos_token_id": -(2**40)}),
        ("generation_config.json", {"eos_token_id": [1, [2]]}),
        ("generation_config.json", {"pad_token_id": [1]}),
        ("tokenizer_config.json", {"model_max_length": "a"}),
        ("tokenizer_config.json", "null"),
        ("tokenizer.json", "null"),
    ],
)
def test_settings_of_a_tokenizer_that_are_none_are_refused_and_not_left_out(tiny, tmp_path, name, content):
    section = changed(tiny, tmp_path, name, content)
    with pytest.raises(RecipeError) as refused:
        load_tokenizer(section)
    assert section.name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        {"architectures": [None]},
        {"architectures": float("nan")},
        {"num_hidden_layers": 2**31},
        {"num_hidden_layers": -1},
        {"quantization_config": [1]},
    ],
)
def test_a_configuration_that_says_what_none_says_is_refused(tiny, tmp_path, content):
    section = changed(tiny, tmp_path, "config.json", content)
    with pytest.raises(RecipeError) as refused:
        load_config(section)
        load_model(section)
    assert "\n" not in str(refused.value)


def test_the_lines_of_a_finished_run_are_those_that_it_wrote(bench, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(bench._trained("recipe.yaml"), run)
    before = RunFolder(run).metrics()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1))
    with pytest.raises(DamagedFile, match=r"metrics.jsonl"):
        RunFolder(run).metrics()
    (run / "manifest.json").unlink()
    assert RunFolder(run).metrics() != before
