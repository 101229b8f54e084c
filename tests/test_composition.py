"""Axes picked at random: what the recipe check lets through trains, resumes to the same bytes, and merges."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import resolved
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, AXES, FORMATS
from lrft.registry.errors import NotMergeable
from lrft.registry.source import Source
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken

SMOKE = sorted((Path(__file__).parents[1] / "recipes" / "smoke").glob("[!_]*.yaml"))
MOSTLY_NULL = {"restart": 0.5, "select": 0.5}
ASIDE = "prune"


@cache
def bank() -> dict[str, dict[str, Any]]:
    """Axis -> method -> the settings its smoke recipe has, and under `data` the data that go with an objective."""
    found: dict[str, dict[str, Any]] = {axis: {} for axis in AXES}
    found["data"] = {}
    for path in SMOKE:
        recipe = load_recipe(path, ["model.name=x/y"]).recipe
        for axis, settings in recipe.parts().items():
            if settings.method == path.stem or settings.method not in found[axis]:
                found[axis][settings.method] = settings.model_dump()
        found["data"][recipe.objective.method] = recipe.data.model_dump()
    return found


def draw(choice: random.Random, methods: dict[str, dict[str, Any]], model: Path) -> Recipe:
    """A recipe with a method drawn on every axis; nothing says yet that they fit."""
    full = choice.random() < 0.2
    chosen: dict[str, Any] = {}
    for axis in AXES:
        if axis == ASIDE:
            continue
        names = sorted(methods[axis])
        if full and axis in ("adapter", "init"):
            continue
        if not names or (
            axis in MOSTLY_NULL and choice.random() < MOSTLY_NULL[axis] and not (full and axis == "select")
        ):
            continue
        chosen[axis] = dict(methods[axis][choice.choice(names)])
    aside = random.Random(repr(sorted(chosen)))  # so that what is drawn without it is what it was
    if aside.random() < 0.2:
        chosen[ASIDE] = dict(methods[ASIDE][aside.choice(sorted(methods[ASIDE]))])
    if chosen["objective"].get("teacher") is not None:
        chosen["objective"]["teacher"] = str(
            model
        )  # the one that a smoke recipe names has another vocabulary
    rows = methods["data"][chosen["objective"]["method"]]
    for settings in chosen.values():  # a method's own rows are of the recipe's format, too
        given = rows["train"][0] if isinstance(rows["train"], list) else rows["train"]
        given = {key: value for key, value in given.items() if key in Source.model_fields}
        settings |= {key: given for key, value in settings.items() if _is_source(value)}
    if full:
        chosen |= {"trainable": "full", "quantization": {"method": "none"}}
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "dtype": choice.choice(["float32", "bfloat16"])},
            **chosen,
            "data": rows,
            "train": {
                "max_steps": 6,
                "batch_size": choice.choice([1, 2]),
                "gradient_accumulation": choice.choice([1, 2]),
                "max_length": 200,
                "packing": choice.choice([True, False]),
                "save_every": 3,
                "keep_last": 9,
                "clip": None if "clippable" not in _declared(chosen, "optimizer").provides else 1.0,
                "seed": choice.randrange(1000),
                "device": "cpu",
            },
        }
    )


def _is_source(value: Any) -> bool:
    return isinstance(value, dict) and "source" in value


def _declared(chosen: dict[str, Any], axis: str) -> Any:
    return AXES[axis].declared(chosen[axis]["method"])


def composition(seed: int, model: Path, given: list[str]) -> Recipe:
    """The first combination drawn from the seed that the recipe check has nothing against."""
    methods, choice = bank(), random.Random(seed)
    for settings in methods["adapter"].values():
        if "adapters" in settings:
            settings["adapters"] = given
    for _ in range(10_000):
        recipe = draw(choice, methods, model)
        if not check(recipe):
            return recipe
    raise AssertionError("no combination passes the check")


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 120))]
)
@pytest.mark.usefixtures("short_answers")
def test_what_passes_the_check_trains_resumes_and_merges_or_refuses(tiny, given_adapters, tmp_path, seed):
    recipe = composition(seed, tiny(), given_adapters())
    path = tmp_path / "recipe.yaml"
    path.write_text(resolved(recipe))
    loaded = load_recipe(path)
    train(loaded, tmp_path / "whole", resume=False)
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")
    adapter = recipe.adapter
    if adapter is not None and "mergeable" not in ADAPTERS.declared(adapter.method).provides:
        with pytest.raises(NotMergeable, match=adapter.method):
            merge(RunFolder(tmp_path / "whole"), tmp_path / "model", None)
    else:
        record = merge(RunFolder(tmp_path / "whole"), tmp_path / "model", None)
        assert record.get("kl_mean", 0) < (1e-3 if recipe.model.dtype == "float32" else 0.05)


def test_every_format_that_holds_pairs_says_so():
    assert [name for name in FORMATS.names() if "pairs" in FORMATS.declared(name).provides] == ["preference"]
