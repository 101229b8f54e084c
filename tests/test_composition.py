"""Axes picked at random: what the recipe check lets through trains, resumes to the same bytes, and merges."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.recipe.check import check
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.resolved import resolved
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, AXES, FORMATS
from lrft.registry.errors import NotMergeable, RecipeError
from lrft.registry.source import Source
from lrft.training.folder import RunFolder
from scripts.make_tiny_model import FAMILIES as TINY
from tests.export.reloaded import logits
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


def compositions(seed: int, model: Path, given: list[str]) -> Iterator[Recipe]:
    """The combinations drawn from the seed that the recipe check has nothing against."""
    methods, choice = bank(), random.Random(seed)
    for settings in methods["adapter"].values():
        if "adapters" in settings:
            settings["adapters"] = given
    for _ in range(10_000):
        recipe = draw(choice, methods, model)
        if not check(recipe):
            yield recipe
    raise AssertionError("no combination passes the check")


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 120))]
)
@pytest.mark.usefixtures("short_answers")
def test_what_passes_the_check_trains_resumes_and_merges_or_refuses(tiny, given_adapters, tmp_path, seed):
    recipe = next(compositions(seed, tiny(), given_adapters()))
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


EARLY = ("bamba", "cohere", "gemma2", "qwen3_moe")
FAMILIES = [*EARLY, *(name for name in TINY if name not in (*EARLY, "bert", "t5"))]


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in EARLY else pytest.mark.slow) for name in FAMILIES]
)
@pytest.mark.usefixtures("short_answers")
def test_what_goes_on_a_family_is_planned_trains_resumes_and_merges_to_what_transformers_computes(
    tiny, given_adapters, tmp_path, family
):
    loaded, result = trained(tiny(family), given_adapters(), FAMILIES.index(family), tmp_path)
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")
    planned = plan(loaded)
    assert planned["ranks_undecided"] or planned["trainable_parameters"] == result["trainable"]
    _, _, adaptation = open_run(RunFolder(tmp_path / "whole"))
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    ours = logits(adaptation.model, ids)
    try:
        merge(RunFolder(tmp_path / "whole"), tmp_path / "model", None, dtype="float32")
    except NotMergeable:
        return
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = plain(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=2e-3 * float(ours.abs().max()), rtol=0)


def trained(model: Path, given: list[str], seed: int, folder: Path) -> tuple[LoadedRecipe, dict[str, Any]]:
    """The first combination in float32 that goes on the model, trained; what the model is not made for is refused."""
    path = folder / "recipe.yaml"
    for recipe in compositions(seed, model, given):
        if recipe.model.dtype != "float32" or recipe.model.head or recipe.objective.method == "contrastive":
            continue
        path.write_text(resolved(recipe))
        loaded = load_recipe(path)
        try:
            plan(loaded)
            return loaded, train(loaded, folder / "whole", resume=False)
        except RecipeError:
            shutil.rmtree(folder / "whole", ignore_errors=True)
    raise AssertionError("nothing goes on the model")


def test_every_format_that_holds_pairs_says_so():
    assert [name for name in FORMATS.names() if "pairs" in FORMATS.declared(name).provides] == ["preference"]
