"""`best/` and `last/` of a run, the checkpoints that they stand for, and scores under the names of checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.export.peft_format import adapter_files
from lrft.recipe.load import load_recipe
from lrft.registry.errors import CheckpointError, LrftError, UsageError
from lrft.training.chosen import find_checkpoint
from tests.training.unbroken import cut_off, same

SCORES = {2: 3.0, 4: 1.0, 6: math.nan, 8: 2.0}
SHORT = ["train.eval_every=2", "train.save_every=3", "train.keep_last=1", "eval.limit=2"]


def scripted(run, batches) -> dict[str, float]:
    return {"eval_loss": SCORES[run.step]}


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    """Held-out losses as they are wanted, so that the best step is not the last."""
    monkeypatch.setattr("lrft.build.scoring._loss", scripted)


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrft.build.scoring._loss", scripted)
        train(load_recipe(tiny_recipe(folder), [*SHORT, "train.keep_last=9"]), folder / "run")
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_last_is_the_finished_adapter_and_best_that_of_the_best_step(whole):
    last, best, adapter = (contents(whole / name) for name in ("last", "best", "adapter"))
    assert json.loads(last.pop("checkpoint.json")) == {"step": 8}
    assert json.loads(best.pop("checkpoint.json")) == {"step": 4, "eval_loss": 1.0}
    said = [set(json.loads(one.pop("manifest.json"))["files"]) for one in (last, best, adapter)]
    assert said == [{*last, "checkpoint.json"}, {*best, "checkpoint.json"}, set(adapter)]
    assert last == adapter and best.keys() == adapter.keys()
    assert best["adapter_model.safetensors"] != adapter["adapter_model.safetensors"]
    recipe, _, adaptation = open_run(find_checkpoint(whole, "step-4"))
    written = adapter_files(adaptation.model, recipe, {})
    assert best["adapter_model.safetensors"] == written["adapter_model.safetensors"]


def test_what_is_no_number_is_never_the_best(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.build.scoring._loss", lambda run, batches: {"eval_loss": math.nan})
    result = train(load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.max_steps=2"]), tmp_path / "run")
    assert "best_checkpoint" not in result and not (tmp_path / "run" / "best").exists()
    with pytest.raises(UsageError, match="has no score that could be the best"):
        find_checkpoint(tmp_path / "run", "best")


@pytest.mark.parametrize("step", [4, 6])
def test_a_kill_before_the_folders_followed_is_made_up_for(whole, tiny_recipe, tmp_path, step):
    """After the checkpoint of a best step, and after one that was no better."""
    folder = cut_off(whole, step, tmp_path / "run")
    for name in ("last", "best") if step == 4 else ("last",):
        shutil.rmtree(folder / name)
    train(load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.keep_last=9"]), folder, resume=True)
    same(folder, whole)
    for name in ("last", "best"):
        assert contents(folder / name) == contents(whole / name)


def test_a_full_disk_leaves_the_adapter_that_was_there(tiny_recipe, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    import lrft.files.fresh_folder as written

    real, calls = written.replace_folder, []

    def second_fails(new, final, synced=None):
        calls.append(final)
        (full if calls.count(final) == 2 else real)(new, final, synced)

    monkeypatch.setattr(written, "replace_folder", second_fails)
    with pytest.raises(LrftError, match=r"last: could not be written .No space left.*--resume"):
        train(load_recipe(tiny_recipe(tmp_path), ["~train.eval_every", *SHORT[1:]]), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "last" / "checkpoint.json").read_text()) == {"step": 3}
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]


def test_a_checkpoint_is_found_by_its_names(run):
    assert find_checkpoint(run).chosen is None
    for name, step in (("best", "step-4"), ("last", "step-8"), ("step-6", "step-6")):
        assert find_checkpoint(run, name).chosen == run / "checkpoints" / step
    with pytest.raises(
        UsageError, match=r"step-5: choose best, last, or .*\(step-2, step-3, step-4, step-6, step-8\)"
    ):
        find_checkpoint(run, "step-5")
    with pytest.raises(UsageError, match="is a checkpoint already"):
        find_checkpoint(run / "checkpoints" / "step-6", "best")
    (run / "checkpoints" / "step-4" / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-4: adapter.safetensors is damaged"):
        find_checkpoint(run, "best")


def test_the_folders_of_adapters_are_found_as_what_they_stand_for(run):
    """They hold recipe.yaml and manifest.json too, and were taken for damaged runs."""
    for name, step in (("best", "step-4"), ("last", "step-8"), ("adapter", None)):
        found = find_checkpoint(run / name)
        assert (found.path, found.chosen) == (run, step and run / "checkpoints" / step)
    assert find_checkpoint(run / "adapter", "best").chosen == run / "checkpoints" / "step-4"
    with pytest.raises(UsageError, match="is a checkpoint already"):
        find_checkpoint(run / "best", "last")
    shutil.rmtree(run / "checkpoints" / "step-4")
    with pytest.raises(
        UsageError, match=r"best: is of step-4, which is not there any more; name .*run, or one of"
    ):
        find_checkpoint(run / "best")
    (run / "last" / "checkpoint.json").write_text("{")
    with pytest.raises(UsageError, match="last: nothing says which checkpoint it is of"):
        find_checkpoint(run / "last")


def test_scores_of_checkpoints_stand_beside_each_other(run, capsys):
    found = evaluate(run, limit=2)
    assert (
        f"last checkpoint, step-8; the best one is {run / 'checkpoints' / 'step-4'}"
        in capsys.readouterr().err
    )
    best = evaluate(run, limit=2, checkpoint="best")
    named = evaluate(run / "checkpoints" / "step-6", limit=2)
    assert "best one" not in capsys.readouterr().err
    assert evaluate(run / "best", limit=2)["adapter"]["loss"].metrics == best["adapter"]["loss"].metrics
    files = {path.name: json.loads(path.read_text()) for path in (run / "eval").iterdir()}
    assert files.keys() == {"adapter.json", "adapter-step-4.json", "adapter-step-6.json"}
    for name, result in (("adapter", found), ("adapter-step-4", best), ("adapter-step-6", named)):
        assert files[f"{name}.json"]["name"] == name
        assert files[f"{name}.json"]["tasks"]["loss"]["metrics"] == result["adapter"]["loss"].metrics
    assert len({result["adapter"]["loss"].metrics["loss"] for result in (found, best, named)}) == 3


@pytest.mark.usefixtures("short_answers")
def test_a_merge_takes_the_checkpoint_that_is_named(run, tmp_path, capsys):
    merge(run, tmp_path / "model")
    assert capsys.readouterr().err.count("this is the last checkpoint") == 1
    losses = [
        merge(run, tmp_path / f"model-{name}", checkpoint=name)["loss_adapter"] for name in ("step-8", "best")
    ]
    assert losses[0] != losses[1]
    record = json.loads((tmp_path / "model-best" / "fidelity.json").read_text())
    assert (record["checkpoint"], record["loss_adapter"]) == ("step-4", losses[1])
