"""The numbers a column can measure: all that the schema knows are there, sums are sums, budgets are the allocator's."""

from __future__ import annotations

import pytest

from lrft.lab.models import Models
from lrft.lab.tables.exact import load
from lrft.lab.tables.exact.metrics import budgets, values
from lrft.lab.tables.exact.schema import METRICS, Column
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ALLOCATORS
from lrft.registry.errors import RecipeError

MODELS = Models()
BASE = load.folder() / "_base.yaml"
RTE = "allocate={method: adalora, target_rank: 1, t_init: 600, t_final: 1800, every: 1}"


def recipe(*overrides: str):
    small = f"model.name={load.folder() / 'configs' / 'roberta-base'}"
    targets = "adapter.targets=[query, key, value, intermediate.dense, output.dense]"
    return load_recipe(BASE, [small, targets, *overrides]).recipe


def measured(of, *metrics: str) -> dict[str, float]:
    return values(of, MODELS, metrics)


def test_every_metric_of_the_schema_is_measured():
    names = [name for name in METRICS if "@" not in name]
    found = measured(recipe(), *names)
    assert found.keys() == set(names) and all(isinstance(value, int | float) for value in found.values())
    assert (found["hidden"], found["layers"], found["heads"]) == (768, 12, 12)
    assert found["linear"] + found["other"] == found["base"]
    assert found["linear_bytes"] + found["other_bytes"] == found["weight_bytes"]


def test_a_sum_is_the_sum_of_its_terms():
    found = measured(recipe(), "weight_bytes + optimizer_bytes", "weight_bytes", "optimizer_bytes")
    assert found["weight_bytes + optimizer_bytes"] == found["weight_bytes"] + found["optimizer_bytes"]
    assert found["optimizer_bytes"] == 8 * 1_327_104  # two float32 moments of every number of LoRA r8


@pytest.mark.parametrize("metric", ["speed", "trainable + speed", "budget@", "budget@x", "", "trainable +"])
def test_a_metric_that_is_not_there_is_refused(metric):
    with pytest.raises(ValueError, match="is none of base, linear"):
        Column(metric=metric, provenance="C")


def test_a_budget_follows_the_cube_at_every_step_and_ends_in_its_target():
    of = recipe("adapter.method=svd_lora", "adapter.rank=2", RTE, "train.max_steps=3900")
    steps = range(1, 3901, 50)
    found = budgets(of, MODELS.get(of.model), steps)
    first, last = 2 * 72, 72
    for step in steps:
        left = 1 - (step - 600) / 1500
        expected = first if step <= 600 else last if step >= 2100 else int(last + (first - last) * left**3)
        assert found[step] == expected, step


def test_the_budget_is_that_of_the_allocator_that_trains(monkeypatch):
    of = recipe("adapter={method: svd_lora, rank: 2, targets: [query]}", RTE, "train.max_steps=3900")
    monkeypatch.setattr(ALLOCATORS.get("adalora"), "budget", lambda self, step, total: step + total)
    assert budgets(of, MODELS.get(of.model), [5]) == {5: 3905}


def test_counting_a_budget_gives_the_model_back():
    of = recipe("adapter={method: svd_lora, rank: 2, targets: [query]}", RTE, "train.max_steps=3900")
    before = measured(recipe(), "trainable")
    budgets(of, MODELS.get(of.model), [1])
    assert measured(recipe(), "trainable") == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.max_steps=100"], "uniform keeps its ranks"),
        (["adapter={method: svd_lora, rank: 2, targets: [query]}", RTE], "write train.max_steps"),
    ],
)
def test_a_recipe_without_a_timetable_has_no_budget(overrides, said):
    of = recipe(*overrides)
    with pytest.raises(RecipeError, match=said):
        measured(of, "budget@1")
