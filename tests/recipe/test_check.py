"""Combinations that cannot work are refused by traits, in a sentence that names what would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from lrft.registry.registry import Registry
from tests.recipe.valid_recipe import VALID, changed, problems_of


@pytest.fixture
def declare(monkeypatch):
    """`declare("lora", requires={"x"})`: change what a method is declared to provide or require."""
    changes = {}
    original = Registry.declared

    def declared(self, name):
        return replace(original(self, name), **changes.get(name, {}))

    monkeypatch.setattr(Registry, "declared", declared)

    def change(name, **traits):
        changes[name] = {key: frozenset(value) for key, value in traits.items()}

    return change


def test_an_unmet_requirement_names_the_part_what_it_lacks_and_who_provides_it(write, declare):
    declare("adamw", provides={"clippable"}, requires={"dense_base"})
    text = changed("schedule: cosine", "schedule: cosine\nquantization: nf4")
    (problem,) = problems_of(write(text))
    assert problem.key == "optimizer.method" and problem.line == 7
    assert problem.message.startswith(
        "adamw requires what no chosen part provides: base weights stay in floating point"
    )
    assert problem.message.endswith("choose quantization none")


def test_a_requirement_met_by_any_chosen_part_is_no_problem(write, declare):
    declare("adamw", provides={"clippable"}, requires={"dense_base", "low_rank", "backward"})
    assert problems_of(write(VALID)) == []


def test_a_requirement_that_no_method_meets_says_so(write, declare):
    declare("lora", provides={"adapters"}, requires={"telepathy"})
    (problem,) = problems_of(write(VALID))
    assert problem.key == "adapter.method"
    assert "telepathy; no registered method provides it" in problem.message


def test_a_default_method_with_an_unmet_requirement_is_reported_at_the_file(write, declare, folder):
    declare("default", requires={"low_rank"})
    declare("lora", provides={"adapters"})
    (problem,) = problems_of(write(VALID))
    assert (problem.key, problem.file, problem.line) == ("init.method", str(folder / "recipe.yaml"), None)
    assert "choose adapter dora, " in problem.message


def test_clipping_is_refused_where_gradients_cannot_be_clipped(write, declare):
    declare("adamw", requires={"backward"}, provides=set())
    (problem,) = problems_of(write(VALID))
    assert problem.key == "train.clip" and "train.clip: null" in problem.message
    assert problems_of(write(VALID), "train.clip=null") == []


def test_nothing_is_concluded_about_traits_while_a_method_is_unknown(write, declare):
    declare("adamw", provides={"clippable"}, requires={"low_rank"})
    assert [p.key for p in problems_of(write(changed("method: lora", "method: lroa")))] == ["adapter.method"]


def test_a_trait_conflict_is_reported_beside_other_problems(write, declare):
    declare("adamw", provides={"clippable"}, requires={"dense_base"})
    text = (
        changed("schedule: cosine", "quantization: nf4")
        .replace("seed: 1", "")
        .replace("batch_size: 2", "batch_size: x")
    )
    assert [p.key for p in problems_of(write(text))] == ["optimizer.method", "train.batch_size"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.dtype=float16", "train.device=cpu"], "model.dtype"),
        (["model.attention=flash_attention_2", "train.device=cpu"], "model.attention"),
        (["model.attention=flash_attention_2", "model.dtype=float32"], "model.attention"),
        (["train.tf32=true", "train.device=cpu"], "train.tf32"),
        (["model.attention=varlen", "train.device=cpu"], "model.attention"),
        (["model.attention=varlen", "model.dtype=float32"], "model.attention"),
        (["model.attention=varlen", "model.compile=true"], "model.attention"),
        (["schedule.warmup_steps=101"], "schedule.warmup_steps"),
        (["~data.eval", "train.eval_every=5"], "train.eval_every"),
        (["data.eval=null", "train.eval_every=5"], "train.eval_every"),
        (["data.train.revision=abc"], "data.train.revision"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_at_the_key(write, overrides, key):
    (problem,) = problems_of(write(VALID), *overrides)
    assert problem.key == key


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dtype=float16"],
        ["model.attention=flash_attention_2"],
        ["train.tf32=true"],
        ["model.attention=varlen"],
        ["schedule.warmup_steps=100"],
        ["schedule.warmup_steps=101", "train.max_steps=null"],
        ["train.eval_every=5"],
        ["data.train={source: o/n, name: main, revision: x}"],
    ],
)
def test_settings_that_may_work_are_let_through(write, overrides):
    assert problems_of(write(VALID), *overrides) == []


def test_check_of_a_valid_recipe_is_empty(write):
    assert check(load_recipe(write(VALID)).recipe) == []


@pytest.mark.parametrize("targets", ["[]", "''", "[q_proj, '']"])
def test_targets_that_name_no_layer_are_refused(write, targets):
    (problem,) = problems_of(write(changed("rank: 8", f"targets: {targets}")))
    assert problem.key == "adapter.targets" and problem.message.startswith("names no layer")


def test_two_lengths_of_the_warmup_are_refused(write):
    text = changed("schedule: cosine", "schedule: {warmup_steps: 3, warmup_ratio: 0.1}")
    (problem,) = problems_of(write(text))
    assert problem.key == "schedule.warmup_steps" and "one of them" in problem.message
