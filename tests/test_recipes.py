"""Every smoke recipe, trained once on a tiny model: it learns, goes on after a cut, loads back and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.steps import check_steps
from lrft.core.params import Site
from lrft.model.trained import trained_tensors
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, AXES, OBJECTIVES
from lrft.registry.errors import NotMergeable
from lrft.training.folder import RunFolder
from tests.export.reloaded import logits, pretrained
from tests.training.unbroken import COSINE, SIX_STEPS, goes_on_unbroken

SMOKE = sorted((Path(__file__).parents[1] / "recipes" / "smoke").glob("[!_]*.yaml"))
every_recipe = pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
# What a finished run is written, read back and merged by; how its numbers came about is no part of it.
KEPT = ("model", "trainable", "adapter", "init", "quantization", "allocate", "restart")
# Axis that sees gradients or losses -> what on it does no more than to wait for the sum.
MEETS = {"allocate": ("uniform",), "restart": (), "optimizer": ("adamw",), "objective": ("cross_entropy",)}


@cache
def plain(path: Path) -> LoadedRecipe:
    """The recipe as it stands, for a model that is not asked."""
    return load_recipe(path, ["model.name=x/y"])


def fits(override: str, recipe: Recipe) -> bool:
    """Whether an override is of what the recipe has.

    A list of sources is set as a whole, and has limits of its own; texts to embed have no held-out loss.
    """
    if override.startswith("train.eval_every"):
        return not embeds(recipe.objective.method)
    section, key, *_ = override.split(".")
    return section != "data" or not isinstance(getattr(recipe.data, key), list)


def of_every_kind() -> list[Path]:
    """The first recipe of each kind of finished run."""
    found: dict[str, Path] = {}
    for path in SMOKE:
        recipe = plain(path).recipe
        found.setdefault(recipe.model_dump_json(include=set(KEPT)), path)
    return list(found.values())


every_kind = pytest.mark.parametrize("path", of_every_kind(), ids=lambda path: path.stem)


@dataclass(frozen=True)
class Trained:
    """A recipe, what its training returned, and the folder of the run, which no test writes to."""

    loaded: LoadedRecipe
    result: dict
    folder: Path


@pytest.fixture(scope="module")
def trained(on_tiny, tmp_path_factory) -> Callable[[Path], Trained]:
    """`trained(path)` -> six steps of the recipe, trained when first asked for."""
    made: dict[Path, Trained] = {}
    usual = load_recipe("smoke/lora").recipe.schedule

    def get(path: Path) -> Trained:
        if path not in made:
            recipe = plain(path).recipe
            # Where a method might meet gradients halfway, they are sums.
            summed = any(a in MEETS and part.method not in MEETS[a] for a, part in recipe.parts().items())
            accumulation = (
                ["train.gradient_accumulation=2"] if summed and not recipe.optimizer.per_layer else []
            )
            schedule = [COSINE] if recipe.schedule == usual else []
            steps = [override for override in SIX_STEPS if fits(override, recipe)]
            loaded = load_recipe(path, [*on_tiny(path), *steps, *schedule, *accumulation])
            folder = tmp_path_factory.mktemp("smoke") / path.stem
            made[path] = Trained(loaded, train(loaded, folder, resume=False), folder)
        return made[path]

    return get


@every_recipe
def test_a_smoke_recipe_lasts_three_steps_for_which_its_settings_leave_room(path):
    recipe = plain(path).recipe
    assert recipe.train.max_steps == 3
    check_steps(recipe, [3])


@every_recipe
def test_a_smoke_recipe_learns(trained, path):
    run = trained(path)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert run.result["step"] == len(lines) == 6
    if "draws" in OBJECTIVES.declared(run.loaded.recipe.objective.method).provides:
        assert any(
            line["reward_spread"] > 0 for line in lines
        )  # of answers that it draws the loss begins at 0
        return
    assert lines[-1]["loss"] < lines[0]["loss"] * 1.05


@every_recipe
def test_every_method_resumes_unbroken(trained, tmp_path, path):
    run = trained(path)
    goes_on_unbroken(run.loaded, run.folder, 3, tmp_path / "broken")


@every_kind
def test_a_finished_adapter_is_the_trained_function(trained, path):
    """In PEFT where it has a PEFT form, under lrft's own names elsewhere."""
    run = trained(path)
    recipe, _, adaptation = open_run(RunFolder(run.folder), scores=True)
    folder, model = run.folder / "adapter", adaptation.model
    if not (folder / "adapter_config.json").exists():
        own = load_file(folder / "adapter.safetensors")
        assert own.keys() == trained_tensors(model).keys()
        return
    from peft import PeftModel

    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    peft = PeftModel.from_pretrained(pretrained(recipe, model), folder).eval()
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = peft(input_ids=ids).logits[:, -ids.shape[1] :]  # after virtual tokens, where there are some
    torch.testing.assert_close(logits(model, ids), theirs, atol=1e-3, rtol=1e-3)


@every_kind
@pytest.mark.usefixtures("short_answers")
def test_every_method_merges_or_says_that_it_cannot(trained, tmp_path, path):
    run = trained(path)
    adapter = run.loaded.recipe.adapter
    if adapter is not None and ADAPTERS.get(adapter.method).why_not_merged(adapter, Site("any", 64, 64)):
        with pytest.raises(NotMergeable, match=adapter.method):
            merge(RunFolder(run.folder), tmp_path / "model", None)
        assert not (tmp_path / "model").exists()
        return
    record = merge(RunFolder(run.folder), tmp_path / "model", None)
    assert record["kl_mean"] < 1e-3  # smoke recipes compute in float32


def test_every_method_has_a_smoke_recipe():
    chosen = {axis: set() for axis in AXES}
    for path in SMOKE:
        for axis, settings in plain(path).recipe.parts().items():
            chosen[axis].add(settings.method)
    for axis, registry in AXES.items():
        assert set(registry.names()) - chosen[axis] == set(), axis
