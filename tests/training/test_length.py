"""Settings that count steps are refused as soon as the length of the run is known, however it was given."""

from __future__ import annotations

import pytest

from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.recipe.length import check_length, length_problems
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

FULL = ("adapter=null", "trainable=full", "quantization=none")
SVD = ("adapter={method: svd_lora, rank: 4}", "init=default")
GATED = ("adapter={method: gated_lora, rank: 4}", "init=default")

# (what does not fit into the few steps of an epoch, the key that is told, words of the remedy)
TOO_LONG = [
    (("schedule={warmup_ratio: 0, warmup_steps: 1000}",), "schedule.warmup_steps", "write at most"),
    (("restart={method: cola, links: 1000}",), "restart.links", "use at most"),
    (("restart={method: periodic, every: 1000}",), "restart.every", "use at most"),
    (("restart={method: relora, every: 1000}",), "restart.every", "use at most"),
    (("restart={method: relora, every: 2, cycle: 1000}",), "restart.cycle", "use at most"),
    ((*FULL, "select={method: badam, every: 1000}"), "select.every", "use at most"),
    ((*FULL, "select={method: lisa, every: 1000}"), "select.every", "use at most"),
    ((*SVD, "allocate={method: adalora, target_rank: 2, t_init: 1000}"), "allocate.t_init", "a sum below"),
    ((*SVD, "allocate={method: dora_rank, target_rank: 2, warmup: 0.6}"), "allocate.final", "lower shares"),
    ((*GATED, "allocate={method: codyra, levels: 1000}"), "allocate.levels", "or fewer"),
    ((*SVD, "allocate={method: increlora, interval: 1000}"), "allocate.interval", "a shorter interval"),
]
cases = pytest.mark.parametrize(
    ("overrides", "key", "remedy"), TOO_LONG, ids=[f"{key} {o[-1]}" for o, key, _ in TOO_LONG]
)


def by_epochs(recipe_file, overrides):
    return load_recipe(recipe_file(), ["train.max_steps=null", "train.epochs=1", *overrides])


@cases
def test_training_by_epochs_refuses_what_does_not_fit_before_it_writes(
    recipe_file, tmp_path, overrides, key, remedy
):
    with pytest.raises(RecipeError) as caught:
        train(by_epochs(recipe_file, overrides), tmp_path / "run", resume=False)
    (problem,) = caught.value.problems
    assert problem.key == key and remedy in problem.message
    assert not [path.name for path in (tmp_path / "run").rglob("*") if path.name != ".lock"]


@cases
def test_a_dry_run_by_epochs_refuses_the_same(recipe_file, overrides, key, remedy):
    with pytest.raises(RecipeError) as caught:
        plan(by_epochs(recipe_file, overrides))
    (problem,) = caught.value.problems
    assert problem.key == key and remedy in problem.message


@pytest.mark.parametrize(("overrides", "key", "remedy"), TOO_LONG[:-1])
def test_where_the_most_steps_are_written_the_recipe_itself_is_refused_at_its_line(
    recipe_file, overrides, key, remedy
):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file(), overrides)
    (problem,) = caught.value.problems
    assert problem.key == key and problem.file == "command line" and remedy in problem.message


@cases
def test_a_run_that_is_long_enough_is_not_refused(recipe_file, overrides, key, remedy):
    recipe = by_epochs(recipe_file, overrides).recipe
    if key in ("allocate.final",):
        return  # shares of a run fit no better into a longer one
    assert length_problems(recipe, 100_000, [4] * 12) == []


def test_everything_that_does_not_fit_is_told_at_once(recipe_file):
    overrides = ("schedule={warmup_ratio: 0, warmup_steps: 1000}", "restart={method: cola, links: 1000}")
    with pytest.raises(RecipeError) as caught:
        check_length(by_epochs(recipe_file, overrides).recipe, 10)
    assert {problem.key for problem in caught.value.problems} == {"schedule.warmup_steps", "restart.links"}


def test_a_masking_that_never_begins_is_refused(recipe_file):
    recipe = by_epochs(recipe_file, ("objective=masked_thought",)).recipe
    with pytest.raises(RecipeError, match=r"objective\.ramp: nothing would be replaced"):
        check_length(recipe, 1)
    check_length(recipe, 2)
