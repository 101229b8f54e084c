"""A model that sees is trained on text: nothing goes on what text never runs through, and that is said."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from lrft.build.adapt import adapt
from lrft.build.recomputing import as_written
from lrft.core.adapted import adapted
from lrft.methods.objectives._embedded import embedding_of
from lrft.methods.objectives._latent import decoder_layers
from lrft.model.load import load_model
from lrft.model.recompute import recomputable
from lrft.model.text_part import parts_aside
from lrft.model.trained import parameter_infos
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.conftest import _maker
from tests.model.test_families import batch_of

TEXT = "model.language_model."
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A tiny Gemma 3 with an encoder of images of three layers, and a language model of two."""
    folder = tmp_path_factory.mktemp("seeing")
    maker = _maker()
    tokenizer = maker.make_tokenizer()
    text = maker.make_config("gemma3_text", tokenizer).to_dict()
    tokens = {"boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=VISION, **tokens)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(folder, adapter, **sections):
    model = {"name": str(folder), "dtype": "float32", **sections.pop("model", {})}
    data = {"train": "x.jsonl", "format": "text"}
    return Recipe.model_validate({"model": model, "adapter": adapter, "data": data, **sections})


@pytest.mark.parametrize(
    "adapter", ["lora", "compacter", "ln_tuning", {"method": "lora", "layers": [1], "targets": ["*_proj"]}]
)
def test_adapters_go_on_the_language_model_alone_and_all_get_a_gradient(seeing, adapter):
    adaptation = adapt(recipe_of(seeing, adapter))
    model = adaptation.model
    names = [name for name, _ in adapted(model.hf)]
    assert names and all(name.startswith(TEXT) for name in names)
    told = "text does not run through model.vision_tower and model.multi_modal_projector, so nothing there trains"
    assert f"model.name: {told}" in adaptation.notes
    model.train()
    model.hidden(batch_of([[[5, 9, 3, 7, 11]]], 5)).square().sum().backward()
    assert all(info.param.grad is not None for info in parameter_infos(model))


def test_layers_beside_it_that_a_recipe_names_are_refused(seeing):
    with pytest.raises(RecipeError, match=r"'vision_tower\.\*' names layers that text never runs through"):
        adapt(recipe_of(seeing, {"method": "lora", "targets": ["vision_tower.*"]}))
    with pytest.raises(RecipeError, match=r"vision_tower.*, which text never runs through"):
        adapt(recipe_of(seeing, None, trainable=["*vision_tower*"]))


def test_a_full_training_is_of_what_text_runs_through(seeing):
    model = adapt(recipe_of(seeing, None, trainable="full")).model
    names = {info.name for info in parameter_infos(model)}
    assert names == {
        name for name, _ in model.hf.named_parameters() if not name.startswith(parts_aside(model.hf))
    }
    assert {info.block for info in parameter_infos(model)} == {"", f"{TEXT}layers.0", f"{TEXT}layers.1"}


def test_its_layers_are_those_of_the_language_model(seeing):
    model = load_model(ModelSection(name=str(seeing), dtype="float32"), meta=True)
    layers = list(model.hf.get_submodule(f"{TEXT}layers"))
    assert decoder_layers(model) == layers == recomputable(model.hf)
    assert embedding_of(model) is model.hf.get_input_embeddings()
    assert as_written(recipe_of(seeing, "lora"), model).of == 2


def test_a_model_of_text_alone_has_nothing_aside(tiny):
    for family in ("llama", "gpt2"):
        assert parts_aside(load_model(ModelSection(name=str(tiny(family))), meta=True).hf) == ()
