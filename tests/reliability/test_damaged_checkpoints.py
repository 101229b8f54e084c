"""R5 in a short form: a damaged checkpoint is never used, the one before is, and it is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.registry.errors import CheckpointError, DamagedFile
from lrft.training.chosen import open_chosen
from lrft.training.folder import RunFolder
from tests.older_run import as_older
from tests.reliability.damage import (
    COMMANDS,
    KINDS,
    Case,
    Expected,
    cases,
    checkpoint_files,
    damaged_checkpoints,
    make_run,
    outcome,
)


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny(), tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def expected(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return Expected(run, tmp_path_factory.mktemp("whole"), ("open", "doctor"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_every_kind_of_damage_to_every_file_is_seen(run, expected, tmp_path):
    files = checkpoint_files(run)
    found = outcome(
        list(cases(files, len(files) * len(KINDS), 5, {"open": 9, "doctor": 1})), expected, tmp_path
    )
    assert found.failures == [] and found.tried == len(files) * len(KINDS) >= 80


def test_the_oracle_sees_a_result_that_changed_in_silence(run, expected, tmp_path, monkeypatch):
    """Whoever reads without comparing fails the test above."""
    monkeypatch.setattr("lrft.training.opened.content_difference", lambda content, entry: "")
    monkeypatch.setattr("lrft.training.opened.open_difference", lambda file, path, entry: "")
    flips = [Case("checkpoints/step-4/adapter.safetensors", "flip", "open", seed) for seed in range(8)]
    assert outcome(flips, expected, tmp_path).held < len(flips)


def test_a_renamed_checkpoint_is_not_the_step_of_its_name(copy, capsys):
    (copy / "checkpoints" / "step-2").rename(copy / "checkpoints" / "step-9")
    with open_chosen(RunFolder(copy)) as saved:
        assert saved.path.name == "step-4"
    assert "step-9: manifest.json is of step 2, so step-9 was renamed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["step-²", "step-٣", "step-04", "step-", "step-1e3", "step-" + "9" * 40])
def test_what_is_no_number_of_a_step_is_no_checkpoint(copy, name):
    shutil.copytree(copy / "checkpoints" / "step-4", copy / "checkpoints" / name)
    with open_chosen(RunFolder(copy)) as saved:
        assert saved.path.name == "step-4"


def test_a_checkpoint_that_is_a_link_out_of_the_run_is_not_followed(copy, tmp_path, capsys):
    shutil.move(copy / "checkpoints" / "step-4", tmp_path / "elsewhere")
    (copy / "checkpoints" / "step-4").symlink_to(tmp_path / "elsewhere")
    with open_chosen(RunFolder(copy)) as saved:
        assert saved.path.name == "step-2"
    assert "step-4 is a link out of its folder" in capsys.readouterr().err


def test_when_all_are_damaged_the_run_does_not_begin_anew(copy):
    for path in copy.glob("checkpoints/step-*/state.json"):
        path.write_text("{}")
    (copy / "result.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"none of its checkpoints can be used \(step-2, step-4\); restore one"
    ):
        train(copy, resume=True)
    with pytest.raises(CheckpointError, match="none of its checkpoints can be used"):
        open_chosen(RunFolder(copy))


def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(copy):
    shutil.rmtree(copy / "checkpoints")
    (copy / "result.json").unlink()
    with pytest.raises(CheckpointError, match="last is of a checkpoint, and there is none any more"):
        train(copy, resume=True)


def test_a_checkpoint_pruned_while_it_is_read_is_read_to_its_end(copy):
    with open_chosen(RunFolder(copy)) as saved:
        shutil.rmtree(copy / "checkpoints")
        assert saved.fault() == "" and saved.tensors() and saved.state()["step"] == 4


def test_one_pruned_while_it_is_looked_for_gives_way_to_a_newer_one(copy, monkeypatch):
    """As a training beside does between our look at the folder and our look into it."""
    real, newer = open_module().steps_in, copy / "checkpoints" / "step-4"
    kept = shutil.move(newer, copy / "newer")
    calls = []

    def steps_in(folder: Path) -> list[Path]:
        found = real(folder)
        if not calls:
            shutil.move(kept, newer)
            shutil.rmtree(folder / "step-2")
        calls.append(found)
        return found

    monkeypatch.setattr(open_module(), "steps_in", steps_in)
    with open_chosen(RunFolder(copy)) as saved:
        assert saved.path == newer


def open_module():
    from lrft.training import checkpoint_folder

    return checkpoint_folder


def test_a_checkpoint_of_an_older_lrft_still_opens_and_it_is_said(run, expected, copy, tmp_path, capsys):
    as_older(copy)
    assert COMMANDS["open"](copy, tmp_path) == expected.of["open"][0]
    assert "step-4: made by an older lrft" in capsys.readouterr().err
    COMMANDS["open"](copy, tmp_path)
    assert "older" not in capsys.readouterr().err


def test_a_strangers_checkpoint_is_refused(copy, tiny, tmp_path):
    """One of another seed, put in the place of the run's own."""
    other = tmp_path / "other"
    other.mkdir()
    recipe = (copy.parent / "recipe.yaml", (copy / "recipe.yaml").read_text())
    recipe[0].write_text(recipe[1].replace("seed: 0", "seed: 1"))
    assert recipe[0].read_text() != recipe[1]
    train(recipe[0], other / "run")
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(other / "run" / "checkpoints", copy / "checkpoints")
    with pytest.raises(DamagedFile, match=r"recipe.yaml: is another recipe than step-4 was trained with"):
        COMMANDS["open"](copy, tmp_path)


@pytest.mark.slow
def test_a_thousand_damaged_checkpoints():
    found = damaged_checkpoints(1000, 11)
    assert found.failures == [] and found.tried == 1000
