"""A run is gone on with by its name, and made longer: its own recipe, a rate that is told, the same bytes after all."""

from __future__ import annotations

import json

import pytest
import torch

from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.recipe.inside_sections import Extension
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.axes import SCHEDULES
from lrft.registry.errors import DamagedFile, Interrupted, RecipeError, UsageError
from lrft.training import schedule
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken, losses, same, stop_at

SHORT = ["quantization=none", "train.max_steps=4", "train.save_every=2", "train.keep_last=9"]


@pytest.fixture(scope="module")
def begun(tiny_recipe, tmp_path_factory):
    """A finished run of four steps, and what its recipe was written with."""
    folder = tmp_path_factory.mktemp("begun")
    train(load_recipe(tiny_recipe(folder), [*SHORT, "optimizer.lr=0.002"]), folder / "run")
    return folder / "run"


@pytest.fixture
def run(begun, tmp_path):
    import shutil

    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def rates(folder):
    return [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_by_its_name_without_any_override(tiny_recipe, begun, tmp_path, monkeypatch):
    loaded = load_recipe(tiny_recipe(tmp_path), [*SHORT, "optimizer.lr=0.002"])
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "stopped")
    assert train(tmp_path / "stopped", resume=True)["step"] == 4
    same(tmp_path / "stopped", begun)
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["recipe_name"] == "tiny"


def test_a_run_that_is_named_without_resume_is_told_apart(run):
    with pytest.raises(RecipeError, match="add --resume to go on with the run"):
        train(run)


@pytest.mark.parametrize("inside", ["adapter", "last", "checkpoints/step-2"])
def test_what_is_inside_of_a_run_is_not_gone_on_with(run, inside):
    with pytest.raises(
        UsageError, match=r"is inside of the run .*run; lrft train .*run --resume goes on"
    ) as told:
        train(run / inside, resume=True)
    assert f"model.adapter={run / inside} begins a new run" in str(told.value)


def test_a_run_goes_on_in_its_own_folder(run, tmp_path):
    with pytest.raises(UsageError, match="goes on in its own folder"):
        train(run, tmp_path / "other", resume=True)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("stretched", [1 - 4 / 7, 1 - 5 / 7, 1 - 6 / 7]),
        ("again", [1, 2 / 3, 1 / 3]),
        ("held", [1 / 4, 1 / 4, 1 / 4]),
    ],
)
def test_added_steps_have_the_rate_that_is_said(how, expected):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    built = schedule.build(optimizer, SCHEDULES.settings("linear"), 4, [Extension(steps=3, rate=how)])
    found = []
    for _ in range(7):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    assert found == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, *expected])


def test_a_second_extension_begins_where_the_first_ended():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    twice = [Extension(steps=2, rate="again"), Extension(steps=2, rate="held")]
    built = schedule.build(optimizer, SCHEDULES.settings("linear"), 2, twice)
    assert [built.rate(step) for step in range(6)] == pytest.approx([1, 1 / 2, 1, 1 / 2, 1 / 2, 1 / 2])


def test_a_finished_run_is_extended_told_and_recorded(run, capsys):
    before = losses(run)
    assert train(run, resume=True, added=Extension(steps=4))["step"] == 8
    assert losses(run)[:4] == before
    said = capsys.readouterr().err
    assert (
        "extended from 4 to 8 steps, in which the rate is that of schedule cosine over 8 steps (stretched)"
        in said
    )
    assert f"{rates(run)[4]:.3g} at step 5" in said and f"{rates(run)[7]:.3g} at step 8" in said
    record = json.loads((run / "run.json").read_text())
    assert record["extended"] == [{"after": 4, "steps": 4, "rate": "stretched"}]
    assert record["total_steps"] == 8
    assert load_recipe(run / "recipe.yaml").recipe.train.extended == [Extension(steps=4)]
    assert train(run, resume=True)["step"] == 8
    assert "already complete at step 8" in capsys.readouterr().err


def test_an_extended_run_is_the_one_that_its_recipe_trains_from_the_start(run, tmp_path):
    train(run, resume=True, added=Extension(steps=3, rate="again"))
    train(run / "recipe.yaml", tmp_path / "anew")
    same(tmp_path / "anew", run)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_extended_run_resumes_unbroken(run, tmp_path, step):
    """From before its first end, from it, and from after it."""
    train(run, resume=True, added=Extension(steps=4, rate="held"))
    goes_on_unbroken(load_recipe(run / "recipe.yaml"), run, step, tmp_path / "broken")


def test_only_a_finished_run_is_extended(run, tiny_recipe, tmp_path):
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match="is not at its end yet"):
        train(run, resume=True, added=Extension(steps=2))
    with pytest.raises(UsageError, match="belongs to a finished run"):
        train(tiny_recipe(tmp_path), resume=True, added=Extension(steps=2))


def test_a_kill_between_the_record_and_the_first_step_is_gone_on_with(run, monkeypatch):
    """The extension is written, no step of it is made."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "lrft.api.training.train._go_through", lambda job: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            train(run, resume=True, added=Extension(steps=2))
    with pytest.raises(UsageError, match="is not at its end yet"):
        train(run, resume=True, added=Extension(steps=2))
    assert train(run, resume=True)["step"] == 6


def test_what_follows_the_whole_run_is_not_extended(tiny_recipe, tmp_path):
    extended = "train.extended=[{steps: 2}]"
    for other in ("restart={method: relora, every: 2}", "allocate=adalora", "train.stop_below=1.0"):
        with pytest.raises(RecipeError, match=r"train\.extended: cannot be"):
            load_recipe(tiny_recipe(tmp_path), [extended, other, "adapter.method=lora"])


def test_a_recipe_that_was_never_extended_keeps_its_hash(tiny_recipe, tmp_path):
    plain, extended = (
        load_recipe(tiny_recipe(tmp_path), o).recipe for o in ([], ["train.extended=[{steps: 1}]"])
    )
    assert "extended" in plain.train.model_dump()
    without = recipe_hash(plain)
    assert without != recipe_hash(extended)
    assert without == recipe_hash(load_recipe(tiny_recipe(tmp_path), ["train.extended=[]"]).recipe)


def test_an_edited_recipe_is_believed_where_it_decides_nothing_and_refused_elsewhere(run, capsys):
    path = run / "recipe.yaml"
    written = path.read_text()
    path.write_text(written.replace("fidelity_rows: 8", "fidelity_rows: 9"))
    open_run(RunFolder(run), scores=True)
    assert "was edited since lrft wrote it; what decides the weights is as it was" in capsys.readouterr().err
    path.write_text(written.replace("  seed: 0\n", "  seed: 1\n"))
    with pytest.raises(DamagedFile, match=r"recipe.yaml: is not what lrft wrote"):
        open_run(RunFolder(run), scores=True)
