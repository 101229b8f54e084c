"""Runs that end at a loss and not at a step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.errors import Interrupted, RecipeError
from lrft.training.gradient_check import GradientCheck

QUICK = ["optimizer.lr=0.05", "schedule=constant", "train.max_steps=12", "train.eval_every=5"]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def smoothed(losses: list[float]) -> list[float]:
    found = []
    for end in range(1, len(losses) + 1):
        weights = [0.9 ** (end - 1 - place) for place in range(end)]
        found.append(sum(w * loss for w, loss in zip(weights, losses[:end], strict=True)) / sum(weights))
    return found


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory):
    """A target that the smoothed loss passes about halfway, the step that does, and the lines of the whole run."""
    folder = tmp_path_factory.mktemp("stop") / "whole"
    train(load_recipe(tiny_recipe(folder.parent), QUICK), folder, resume=False)
    curve = smoothed([line["loss"] for line in lines(folder)])
    target = (curve[6] + curve[7]) / 2
    last = next(step + 1 for step, value in enumerate(curve) if value <= target)
    assert 3 < last < 12, "the loss falls"
    return target, last, lines(folder)


def test_the_first_step_below_is_the_last_scored_and_saved(recipe_file, tmp_path, whole):
    target, last, full = whole
    loaded = load_recipe(recipe_file(), [*QUICK, f"train.stop_below={target!r}"])
    result = train(loaded, tmp_path / "short", resume=False)
    found = lines(tmp_path / "short")
    assert result["step"] == last == len(found)
    assert [line["loss"] for line in found] == [line["loss"] for line in full[:last]]
    assert "eval_loss" in found[-1]
    assert (tmp_path / "short" / "checkpoints" / f"step-{last}").is_dir()
    assert result["smoothed_loss"] == pytest.approx(smoothed([line["loss"] for line in found])[-1])


def test_a_target_that_is_not_reached_changes_nothing(recipe_file, tmp_path, whole):
    loaded = load_recipe(recipe_file(), [*QUICK, "train.stop_below=1e-6"])
    assert train(loaded, tmp_path / "run", resume=False)["step"] == 12
    assert lines(tmp_path / "run")[-1]["loss"] == whole[2][-1]["loss"]


def test_an_interruption_does_not_move_the_end(recipe_file, tmp_path, whole, monkeypatch):
    target, last, _ = whole
    loaded = load_recipe(recipe_file(), [*QUICK, f"train.stop_below={target!r}"])

    def stopped(self, run):
        if run.step == 3:
            run.stop_signal = 15

    with monkeypatch.context() as patch:
        patch.setattr(GradientCheck, "after_step", stopped)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "run", resume=False)
    assert train(loaded, tmp_path / "run", resume=True)["step"] == last
    # Killed after the last checkpoint and before the result: nothing is trained on top.
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapter")
    again = train(loaded, tmp_path / "run", resume=True)
    assert (again["step"], len(lines(tmp_path / "run"))) == (last, last)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("restart relora", ["restart={method: relora, every: 4}"]),
        (
            "allocate adalora",
            ["adapter={method: svd_lora, rank: 4}", "allocate={method: adalora, target_rank: 2}"],
        ),
    ],
)
def test_what_follows_the_whole_run_is_not_cut_short(recipe_file, method, overrides):
    assert load_recipe(recipe_file(), [*QUICK, *overrides]).recipe.train.stop_below is None
    with pytest.raises(RecipeError, match=f"train.stop_below: would end the run before {method}"):
        load_recipe(recipe_file(), [*QUICK, *overrides, "train.stop_below=3"])
