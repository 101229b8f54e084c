"""Checkpoints that bitsandbytes has stored in 4 bits are taken over code for code, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.build.adapt import adapt
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapters_off
from lrft.export.merge import merge_into
from lrft.model import asked
from lrft.model.load import load_model
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError


def recipe_of(folder, quantization="nf4", dtype="float32", **more):
    section = {"name": str(folder), "dtype": dtype}
    data = {"train": "x.jsonl", "format": "text"}
    written = {"model": section, "adapter": {"method": "lora", "rank": 4}, "quantization": quantization}
    return Recipe.model_validate({**written, "data": data, **more})


@pytest.fixture
def packed(tiny, tmp_path):
    """`packed(family, **settings)` -> folder of a tiny model that transformers has written in 4 bits."""

    def make(family="llama", shard="1GB", bias=False, **settings):
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        chosen = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **settings}
        four = BitsAndBytesConfig(load_in_4bit=True, **chosen)
        hf = AutoModelForCausalLM.from_pretrained(tiny(family, bias=bias), quantization_config=four)
        hf.save_pretrained(tmp_path / "packed", max_shard_size=shard)
        return tmp_path / "packed"

    return make


FORMS = [
    ("llama", {}, "nf4"),
    ("gemma2", {}, "nf4"),
    ("qwen2", {"bnb_4bit_use_double_quant": False}, {"method": "nf4", "double_quant": False}),
    ("llama", {"bnb_4bit_quant_type": "fp4"}, "fp4"),
    ("llama", {"shard": "20KB", "bias": True}, "nf4"),
]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("family", "settings", "storage"), FORMS)
def test_the_codes_are_those_of_the_file_and_the_logits_those_of_transformers(
    packed, monkeypatch, family, settings, storage, streamed
):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(asked, "SMALL", 0 if streamed else 50_000_000)
    folder = packed(family, **settings)
    model = adapt(recipe_of(folder, storage)).model
    held = {}
    for file in folder.glob("*.safetensors"):
        held |= load_file(file)
    layers = list(frozen_layers(model))
    assert len(layers) == 14
    for name, base, _ in layers:
        assert torch.equal(base.codes, held[f"{name}.weight"]), name
        assert torch.equal(base.absmax, held[f"{name}.weight.absmax"]), name
        assert (base.bias is None) == (f"{name}.bias" not in held), name
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), adapters_off(model.hf):
        ours = asked.reference(model, ids)
        # In evaluation mode bitsandbytes rounds its scales to bfloat16 on some CPUs.
        theirs = AutoModelForCausalLM.from_pretrained(folder).train()(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_read_whole_or_one_by_one_the_fingerprint_is_the_same(packed, monkeypatch):
    recipe = recipe_of(packed(), init="pissa", dtype="bfloat16")
    whole = adapt(recipe).model
    monkeypatch.setattr(asked, "SMALL", 0)
    streamed = adapt(recipe).model
    assert whole.fingerprint == streamed.fingerprint == load_model(recipe.model).fingerprint
    for (name, one, _), (_, other, _) in zip(frozen_layers(whole), frozen_layers(streamed), strict=True):
        assert torch.equal(one.weight(), other.weight()), name


def test_a_start_that_the_base_gives_up_is_taken_off_the_decoded_weight(packed):
    recipe = recipe_of(packed(), init={"method": "pissa", "residual": "rewrite"})
    model, dense = adapt(recipe).model, load_model(recipe.model)
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = asked.reference(model, ids), asked.reference(dense, ids)
    assert 0 < (ours - theirs).abs().max() < 0.2 * theirs.abs().max()  # rounded once more


def test_it_merges_onto_what_it_decodes_to_and_the_merged_model_is_dense(packed):
    recipe = recipe_of(packed())
    model, dense = adapt(recipe).model, load_model(recipe.model)
    before = {name: parameter.clone() for name, parameter in dense.hf.named_parameters()}
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    for name, parameter in dense.hf.named_parameters():
        assert torch.equal(parameter, before[name]), name  # B is 0 yet
    assert "quantization_config" not in dense.hf.config.to_dict()


@pytest.mark.parametrize(
    "storage",
    [
        "none",
        "fp4",
        "int8",
        "nf4_reference",
        {"method": "nf4", "double_quant": False},
        {"method": "nf4", "block_size": 128},
    ],
)
def test_another_storage_than_that_of_the_file_is_refused_with_what_to_write(packed, storage):
    recipe = recipe_of(packed(), storage)
    with pytest.raises(RecipeError, match=r"quantization: .*write \{method: nf4, double_quant: true"):
        adapt(recipe)


def test_a_dry_run_says_the_same(packed):
    folder = packed()
    recipe = recipe_of(folder, "none")
    with pytest.raises(RecipeError, match="stored in few bits already"):
        plan_without_weights(recipe, load_model(recipe.model, meta=True))
    plan_without_weights(recipe_of(folder), load_model(recipe.model, meta=True))


def test_codes_of_another_table_are_refused(packed):
    folder = packed()
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("up_proj.weight.quant_map"))
    tensors[name] = tensors[name] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"up_proj.weight: its 4-bit codes are not those of nf4"):
        adapt(recipe_of(folder))


def test_a_packed_layer_that_is_gone_is_missed_by_name(packed):
    folder = packed()
    tensors = load_file(folder / "model.safetensors")
    gone = "model.layers.0.mlp.up_proj.weight"
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(gone)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=f"does not hold {gone}"):
        adapt(recipe_of(folder))


def test_transposed_layers_in_4_bits_are_refused(packed):
    with pytest.raises(RecipeError, match=r"model.name: .*transposed|in another shape"):
        adapt(recipe_of(packed("gpt2")))


def test_eight_bits_are_refused(tiny, tmp_path):
    config = json.loads((tiny() / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    with pytest.raises(RecipeError, match=r"bitsandbytes has quantized already \(8 bits\)"):
        adapt(recipe_of(tmp_path, "int8"))
