"""Checkpoints of GPTQ and AWQ, made of known integers, are taken over as they are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.build.adapt import adapt
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapters_off
from lrft.model import asked
from lrft.model.load import load_config, load_model
from lrft.model.trained import frozen_layers
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.methods.quant.test_int_groups import as_awq, as_gptq, decoded, known
from tests.model.test_packed import recipe_of

STORAGE = {"method": "int_groups", "bits": 4, "group_size": 32}


@pytest.fixture
def written(tiny, tmp_path):
    """`written(form)` -> folder of a tiny llama whose layers are known integers, and their dense weights by name."""

    def make(form, **said):
        source = tiny()
        tensors, dense = load_file(source / "model.safetensors"), {}
        for seed, key in enumerate(sorted(k for k in tensors if k.endswith("_proj.weight"))):
            layer, (out, width) = key.removesuffix(".weight"), tensors.pop(key).shape
            n, z, s = known(out, width, 32, seed=seed)
            s = (s * 0.02).half()
            dense[layer] = decoded(n, z, s, torch.arange(width) // 32)
            parts = as_gptq(n, z, s) if form == "gptq" else as_awq(n, z, s)
            tensors.update({f"{layer}.{leaf}": part for leaf, part in parts.items()})
        folder = tmp_path / form
        folder.mkdir()
        for file in source.iterdir():
            if file.suffix == ".json" and not file.name.endswith("index.json"):
                (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        stored = {"quant_method": form, "bits": 4, "group_size": 32, **said}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder, dense

    return make


@pytest.mark.parametrize(("form", "streamed"), [("gptq", False), ("gptq", True), ("awq", False)])
def test_the_weights_are_the_integers_and_the_logits_those_of_the_dense_model(
    written, tiny, monkeypatch, form, streamed
):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(asked, "SMALL", 0 if streamed else 50_000_000)
    folder, dense = written(form)
    model = adapt(recipe_of(folder, STORAGE)).model
    layers = {name: base for name, base, _ in frozen_layers(model)}
    assert layers.keys() == dense.keys() and len(layers) == 14
    assert all(torch.equal(base.weight(), dense[name]) for name, base in layers.items())
    plain = AutoModelForCausalLM.from_pretrained(tiny()).eval()
    for name, weight in dense.items():
        plain.get_submodule(name).weight.data.copy_(weight)
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), adapters_off(model.hf):
        torch.testing.assert_close(asked.reference(model, ids), plain(input_ids=ids).logits)


def test_another_storage_is_refused_with_what_to_write(written):
    folder, _ = written("gptq")
    for storage in ("none", "nf4_reference", {**STORAGE, "group_size": 64}):
        with pytest.raises(RecipeError, match=r"write \{method: int_groups, bits: 4, group_size: 32\}"):
            adapt(recipe_of(folder, storage))
    recipe = recipe_of(folder, STORAGE)
    plan_without_weights(recipe, load_model(recipe.model, meta=True))


def test_a_layer_without_its_scales_is_named(written):
    folder, _ = written("gptq")
    tensors = load_file(folder / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj"
    del tensors[f"{gone}.scales"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=f"model.name: {gone}.weight: .* no whole layer"):
        adapt(recipe_of(folder, STORAGE))


def test_layouts_that_are_not_read_are_refused_before_any_weight_is(written):
    folder, _ = written("awq", version="gemv")
    with pytest.raises(RecipeError, match="awq has quantized already, and its layout gemv is not read"):
        load_config(ModelSection(name=str(folder)))
