"""The skeleton of a model is transformers' own: names, shapes, and what its layers keep, to the byte."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from lrft.build.adapt import adapt
from lrft.build.measure import planned
from lrft.build.trial import Storage, freeze, try_layer
from lrft.data.steps import Shape
from lrft.model.described import _published, build_skeleton, describe
from lrft.model.probe import batch_of
from lrft.model.skeleton import Skeleton
from lrft.model.skeleton_families import FAMILIES, why_no_skeleton
from lrft.ops.products import multiplying
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.kept import computing, keeping

# Parameters as the models' pages give them, to the last one.
SIZES = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "google/gemma-2-9b": 9_241_705_984,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
CASES = ["lora", "lora, dropout", "dora", "dora, dropout", "miss", "vera", "randlora"]


@pytest.mark.parametrize("name", SIZES)
def test_a_packaged_configuration_has_the_published_number_of_parameters(name):
    hf = Skeleton(describe(name).config, torch.bfloat16)
    assert sum(parameter.numel() for parameter in hf.parameters()) == SIZES[name]


def test_every_packaged_configuration_is_of_a_known_family():
    assert _published().keys() >= SIZES.keys()
    assert not any(why_no_skeleton(config) for config in _published().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_transformers(tiny, family):
    config = json.loads((tiny(family) / "config.json").read_text())
    ours = Skeleton(config, torch.bfloat16)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny(family)))
    shapes = [{name: tuple(p.shape) for name, p in hf.named_parameters()} for hf in (ours, theirs)]
    assert shapes[0] == shapes[1]


def real_bytes(recipe: object, lengths: list[int], kernels: bool = False) -> int:
    """Bytes that the body of the real model keeps for rows of one document each, weights left out."""
    torch.manual_seed(0)
    model = adapt(recipe).model.train()
    with computing(kernels), keeping() as held:
        y = model.hidden(batch_of([[[5 + k % 100 for k in range(n)]] for n in lengths]))
    del y
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    return sum(size for place, size in held.items() if place not in own)


def planned_bytes(recipe: object, lengths: list[int]) -> int:
    """The same of the skeleton: its layers, the angles of rotation, and what the last norm adds."""
    model, _ = build_skeleton(recipe.model)
    shape = Shape(len(lengths), max(lengths), tuple(lengths))
    hf = model.hf
    hf.set_attn_implementation("segmented")
    with planned(recipe, model):
        kept = 0
        for index, layer in enumerate(hf.model.layers):
            freeze(layer, Storage(True), anchored=False)
            kept += try_layer(hf, layer, shape, device="cpu", wanted=index > 0).kept
    tokens, item = sum(lengths), 2
    return kept + tokens * (2 * hf.config.angles * item + 4)


def recipe_of(case: str, model: Path) -> object:
    method = case.partition(",")[0]
    dropout = 0.05 if "dropout" in case else 0
    overrides = [f"model.name={model}", "train.device=cpu", "quantization=none", "model.dtype=bfloat16"]
    return load_recipe(f"recipes/smoke/{method}.yaml", [*overrides, f"adapter.dropout={dropout}"]).recipe


def growth(count, recipe: object) -> float:
    """Bytes a token, from two numbers of rows, so that what does not grow drops out."""
    few, many = (count(recipe, [16] * rows) for rows in (8, 24))
    return (many - few) / 256


def check_bytes(recipe: object, kernels: bool) -> None:
    with multiplying((torch.bfloat16,)):
        real = growth(partial(real_bytes, kernels=kernels), recipe)
        with computing(kernels):
            assert growth(planned_bytes, recipe) == pytest.approx(real, abs=2)


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_token_keeps_is_planned_to_the_byte(tiny, case, kernels):
    check_bytes(recipe_of(case, tiny()), kernels)


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_the_planned_bytes_are_the_kept_ones(tiny, family, kernels):
    check_bytes(recipe_of("lora", tiny(family)), kernels)


def test_files_that_contradict_their_configuration_are_refused(tiny, tmp_path):
    for file in tiny().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    recipe = recipe_of("lora", tmp_path)
    with pytest.raises(
        RecipeError, match=r"mlp.gate_proj.weight as 128 x 64, where its config.json says 96 x 64"
    ):
        build_skeleton(recipe.model)


def test_an_unknown_family_is_told_with_what_plans_it(tiny):
    recipe = recipe_of("lora", tiny("gpt2"))
    with pytest.raises(RecipeError, match=r"model_type gpt2.*lrft train --dry-run"):
        build_skeleton(recipe.model)


def test_a_family_is_not_known_where_the_model_s_own_code_may_decide(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "model.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    section = recipe_of("lora", folder).model
    build_skeleton(section)
    with pytest.raises(RecipeError, match=r"brings code of its own.*lrft train --dry-run"):
        build_skeleton(section, trust_remote_code=True)


def test_a_name_that_nothing_describes_says_what_would_work(monkeypatch):
    recipe = load_recipe("recipes/smoke/lora.yaml", ["model.name=nobody/nothing"]).recipe
    monkeypatch.setattr("lrft.model.described.offline_if_unreachable", lambda: True)
    with pytest.raises(
        RecipeError, match="no folder, is not cached and is not packaged; give a local folder"
    ):
        build_skeleton(recipe.model)
