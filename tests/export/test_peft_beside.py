"""Base weights that train beside the adapter: PEFT, given the folder, computes the logits of the merged model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load

from lrft.export.merge import merge_into
from lrft.export.peft_format import adapter_files, peft_name
from lrft.export.write import write_adapter_folder
from lrft.model.load import load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import choose_base_weights
from lrft.recipe.schema import Recipe
from lrft.registry.errors import NumericalError
from tests.export.test_peft_format import CASES, recipe_for
from tests.export.test_peft_format import adapted_model as with_adapter

EMBEDDING, HEAD, NORMS = "*embed_tokens*", "lm_head*", "*norm.weight"
TRAINED = {
    "embedding": [EMBEDDING],
    "head": [HEAD],
    "both": [EMBEDDING, HEAD],
    "norms": [NORMS, "*layernorm*"],
    "a layer": ["layers.0.mlp.down_proj.weight"],
}


def trained(recipe: Recipe, weights: list[str], monkeypatch):
    """The adapted model of a recipe whose base weights train beside, everything moved by noise."""
    loaded = load_model(recipe.model)
    choose_base_weights(loaded, weights)
    monkeypatch.setattr("tests.export.test_peft_format.load_model", lambda section: loaded)
    model = with_adapter(recipe)
    monkeypatch.undo()
    return model


def both(recipe: Recipe, model, folder):
    """Logits of the merged weights, and of PEFT on the base of the recipe with the written folder."""
    from peft import PeftModel

    write_adapter_folder(folder, adapter_files(model, recipe, {"step": 1}), load_tokenizer(recipe.model)[0])
    merged, base = load_model(recipe.model).hf, load_model(recipe.model).hf
    dense = load_model(recipe.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    merged, ids = dense.hf, torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    for hf in (merged, base):
        hf.set_attn_implementation("eager")
    with torch.no_grad():
        ours, start = merged(input_ids=ids).logits, base(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(base, folder).eval()(input_ids=ids).logits
    assert (ours - start).abs().max() > 1e-2
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
def test_a_trained_tied_embedding_stays_the_head_in_peft(tiny, tmp_path, monkeypatch, case):
    recipe = recipe_for(tiny("llama", tied=True), CASES[case])
    ours, theirs = both(recipe, trained(recipe, [EMBEDDING], monkeypatch), tmp_path / "adapter")
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["lora", "miss"])
@pytest.mark.parametrize(
    ("family", "weights"), [("gpt2", "*wte*"), ("gemma2", EMBEDDING), ("qwen2", EMBEDDING)]
)
def test_so_it_does_in_other_families(tiny, tmp_path, monkeypatch, family, weights, case):
    recipe = recipe_for(tiny(family), CASES[case])
    model = trained(recipe, [weights], monkeypatch)
    if (family, case) == ("gpt2", "miss"):
        assert "adapter.safetensors" in adapter_files(
            model, recipe, {}
        )  # PEFT has it not on transposed layers
        return
    ours, theirs = both(recipe, model, tmp_path / "adapter")
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["lora", "dora", "vera"])
@pytest.mark.parametrize("what", TRAINED)
def test_untied_weights_go_along_each_for_itself(tiny, tmp_path, monkeypatch, what, case):
    settings = {**CASES[case], **({"targets": ["q_proj", "up_proj"]} if what == "a layer" else {})}
    recipe = recipe_for(tiny("llama", tied=False), settings)
    ours, theirs = both(recipe, trained(recipe, TRAINED[what], monkeypatch), tmp_path / "adapter")
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "ensure_weight_tying" not in config


def test_a_layer_that_trains_whole_is_no_target_beside_its_adapted_namesakes(tiny, tmp_path, monkeypatch):
    recipe = recipe_for(
        tiny("llama", tied=False), {"method": "lora", "rank": 4, "targets": ["layers.1.mlp.down_proj"]}
    )
    model = trained(recipe, ["layers.0.mlp.down_proj.weight"], monkeypatch)
    ours, theirs = both(recipe, model, tmp_path / "adapter")
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_base_weights_keep_their_own_precision(tiny, monkeypatch):
    recipe = recipe_for(tiny("llama"), {**CASES["lora"], "dtype": "bfloat16"})
    files = adapter_files(trained(recipe, [EMBEDDING], monkeypatch), recipe, {})
    kinds = {name: tensor.dtype for name, tensor in load(files["adapter_model.safetensors"]).items()}
    assert kinds["base_model.model.model.embed_tokens.weight"] == torch.float32
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.bfloat16}


def test_the_bias_of_an_adapted_layer_stands_beneath_its_adapter():
    sites = {"model.layers.0.self_attn.q_proj"}
    assert (
        peft_name("model.layers.0.self_attn.q_proj.bias", sites)
        == "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
    )
    assert (
        peft_name("model.layers.0.mlp.up_proj.bias", sites)
        == "base_model.model.model.layers.0.mlp.up_proj.bias"
    )
    assert peft_name("model.norm.weight", sites) == "base_model.model.model.norm.weight"


@pytest.mark.parametrize("case", ["lora", "miss", "vera"])
def test_trained_biases_of_adapted_layers_reach_peft(tiny, tmp_path, monkeypatch, case):
    """Stood in for: the names and values that a model whose biases train gives."""
    from peft import PeftModel

    recipe = recipe_for(tiny("llama", tied=False, bias=True), CASES[case])
    model = with_adapter(recipe)
    name, moved = "model.layers.0.self_attn.q_proj", torch.linspace(-1, 1, 64)
    model.hf.get_submodule(name).base.bias.copy_(moved)
    monkeypatch.setattr("lrft.export.peft_format.base_parameters", lambda model: [(f"{name}.bias", moved)])
    write_adapter_folder(tmp_path / "a", adapter_files(model, recipe, {}), load_tokenizer(recipe.model)[0])
    base, ids = load_model(recipe.model).hf, torch.randint(3, 400, (1, 12))
    base.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "a").eval()(input_ids=ids).logits
        model.hf.set_attn_implementation("eager")
        torch.testing.assert_close(theirs, model.hf(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["bias"] in ("lora_only", "all") and "modules_to_save" not in config


def test_biases_that_peft_cannot_name_for_a_method_ship_under_our_own_names(tiny, monkeypatch):
    recipe = recipe_for(tiny("llama", tied=False, bias=True), CASES["loha"])
    model = with_adapter(recipe)
    assert "bias" not in json.loads(adapter_files(model, recipe, {})["adapter_config.json"])
    moved = [("model.layers.0.self_attn.q_proj.bias", torch.ones(64))]
    monkeypatch.setattr("lrft.export.peft_format.base_parameters", lambda model: moved)
    assert "adapter.safetensors" in adapter_files(model, recipe, {})


@pytest.mark.parametrize("case", ["lora", "bat"])
def test_an_adapter_that_is_no_number_is_refused_by_name(tiny, case):
    recipe = recipe_for(tiny("gpt2" if case == "bat" else "llama"), CASES[case])
    model = with_adapter(recipe)
    parameter = next(p for p in model.hf.parameters() if p.requires_grad)
    with torch.no_grad():
        parameter.view(-1)[0] = float("inf")
    with pytest.raises(NumericalError, match=r"0\.(self_attn\.q_proj|attn\.c_attn)\..*not finite"):
        adapter_files(model, recipe, {})
