"""R5 in a short form, of everything else in a run folder: the same result, or one sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.api.asking.doctor import diagnose
from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.registry.errors import CheckpointError, DamagedFile
from lrft.training.folder import RunFolder
from tests.older_run import as_older
from tests.reliability.damage import (
    COMMANDS,
    KINDS,
    Expected,
    cases,
    damaged_run_folders,
    make_run,
    outcome,
    run_files,
)


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_run(tiny(), tmp_path_factory.mktemp("made"))
    evaluate(RunFolder(made))
    return made


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_every_kind_of_damage_to_the_records_is_seen(run, tmp_path_factory, tmp_path):
    expected = Expected(run, tmp_path_factory.mktemp("whole"), ("open", "report"))
    files = ["recipe.yaml", "run.json", "plan.json", "result.json", "manifest.json", "metrics.jsonl"]
    files += ["eval/adapter.json", "eval/adapter-samples.jsonl", "adapter/adapter_config.json"]
    assert set(files) <= {*run_files(run), "eval/adapter-samples.jsonl"}
    files = [file for file in files if (run / file).exists()]
    found = outcome(list(cases(files, 90, 3, {"open": 5, "report": 1})), expected, tmp_path)
    assert found.failures == [] and found.tried == 90


def test_a_bit_of_the_plan_changes_nothing(copy, tmp_path, capsys):
    whole = COMMANDS["open"](copy, tmp_path)
    plan = copy / "plan.json"
    plan.write_text(plan.read_text().replace('"alpha": ', '"alpha": 1', 1))
    assert COMMANDS["open"](copy, tmp_path) == whole
    with pytest.raises(DamagedFile, match=r"plan.json: is not what lrft wrote"):
        COMMANDS["report"](copy, tmp_path)


def test_a_recipe_that_was_edited_is_not_believed_and_the_sentence_says_what_changes_a_setting(
    copy, tmp_path
):
    recipe = copy / "recipe.yaml"
    whole = recipe.read_text()
    recipe.write_text(whole.replace("limit: 2", "limit: 1"))
    for command in ("open", "eval", "report", "resume"):
        with pytest.raises(DamagedFile) as told:
            COMMANDS[command](copy, tmp_path)
        assert str(told.value) == (
            f"{recipe}: is not what lrft wrote: it was edited, or is damaged; copy {copy}/last/recipe.yaml over it; "
            f"logging, export, eval and offload are changed with lrft train {copy} --resume KEY=VALUE, anything else "
            f"begins a new run: lrft train {recipe} --out NEW"
        )
    shutil.copy(copy / "last" / "recipe.yaml", recipe)
    assert recipe.read_text() == whole and COMMANDS["open"](copy, tmp_path)


def test_an_edited_recipe_is_seen_without_the_manifest_too(copy, tmp_path):
    (copy / "manifest.json").unlink()
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(DamagedFile, match=r"recipe.yaml: is another recipe than step-4 was trained with"):
        COMMANDS["open"](copy, tmp_path)


def test_without_the_manifest_the_run_is_read_and_gone_on_with_it_has_one_again(copy, tmp_path, capsys):
    whole, adapter = COMMANDS["open"](copy, tmp_path), adapter_of(copy)
    (copy / "manifest.json").unlink()
    assert COMMANDS["open"](copy, tmp_path) == whole
    assert "manifest.json: is missing, so the sections eval, export and logging" in capsys.readouterr().err
    train(copy, resume=True)
    assert (copy / "manifest.json").is_file() and adapter_of(copy) == adapter


def test_checkpoints_without_a_recipe_are_not_gone_on_with(copy):
    recipe = shutil.move(copy / "recipe.yaml", copy.parent / "stranger.yaml")
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=r"holds checkpoints and no recipe.yaml, so nobody knows"):
            train(recipe, copy, resume=resume)


@pytest.mark.parametrize(
    "damage", ["adapter/adapter_model.safetensors", "adapter/tokenizer.json", "result.json"]
)
def test_a_damaged_end_is_written_again_from_the_last_checkpoint(copy, damage, capsys):
    adapter, result = adapter_of(copy), json.loads((copy / "result.json").read_text())
    content = bytearray((copy / damage).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / damage).write_bytes(content)
    again = train(copy, resume=True)
    said = capsys.readouterr().err
    assert Path(damage).name in said and "it is written again from the last checkpoint" in said
    assert adapter_of(copy) == adapter and again["loss"] == result["loss"]
    train(copy, resume=True)
    assert "already complete at step 4; nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_comes_back_from_the_checkpoint(copy, cut, capsys):
    lines = copy / "metrics.jsonl"
    before = [json.loads(line) for line in lines.read_text().splitlines()]
    (copy / "result.json").unlink()
    os.truncate(lines, lines.stat().st_size - cut)
    train(copy, resume=True)
    after = [json.loads(line) for line in lines.read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    assert [{k: v for k, v in line.items() if k not in clock} for line in after] == [
        {k: v for k, v in line.items() if k not in clock} for line in before
    ]
    said = "the line of step 4 was torn or missing; written again from the checkpoint"
    assert (said in capsys.readouterr().err) == (cut > 1)


def test_doctor_names_what_is_damaged_and_what_to_type(copy):
    assert all(one["passed"] for one in diagnose(copy)["checks"])
    (copy / "plan.json").write_text("null")
    (copy / "checkpoints" / "step-2" / "state.json").unlink()
    found = diagnose(copy)
    failed = [f"{one['check']}: {one['found']}" for one in found["checks"] if not one["passed"]]
    assert "plan.json" in failed[0] and failed[1] == "2 checkpoints are whole: step-2: state.json is missing"
    assert found["next"] == [f"lrft train {copy} --resume", f"rm -r {copy}/checkpoints/step-2"]
    train(copy, resume=True)
    shutil.rmtree(copy / "checkpoints" / "step-2")
    assert all(one["passed"] for one in diagnose(copy)["checks"])


def test_a_run_of_an_older_lrft_is_read_and_gone_on_with(copy, tmp_path):
    adapter = adapter_of(copy)
    whole = COMMANDS["open"](copy, tmp_path)
    assert COMMANDS["open"](as_older(copy), tmp_path) == whole
    (copy / "result.json").unlink()
    train(copy, resume=True)
    assert adapter_of(copy) == adapter and (copy / "manifest.json").is_file()


def test_every_kind_is_tried():
    assert len(KINDS) >= 20


@pytest.mark.slow
def test_five_hundred_damaged_run_folders():
    found = damaged_run_folders(500, 13)
    assert found.failures == [] and found.tried == 500
