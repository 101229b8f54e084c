"""PEFT loads the adapter folder and computes our logits: LoRA, rsLoRA, DoRA, patterns, the methods
with frozen or shared parts, dense and 4-bit bases."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load

from lrft.core.batch import Batch
from lrft.export.own_form import why_own_form
from lrft.export.peft_format import adapter_files
from lrft.export.write import write_adapter_folder
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.sites import choose, linear_sites
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import frozen_layers, parameter_infos
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS

CASES = {
    "lora": {"method": "lora", "rank": 4},
    "rslora": {"method": "lora", "rank": 4, "rslora": True},
    "dora": {"method": "dora", "rank": 4},
    "dora-magnitude": {"method": "dora", "rank": 4, "magnitude_only": ["o_proj", "*.mlp.up_proj"]},
    "patterns": {
        "method": "lora",
        "rank": 4,
        "targets": ["q_proj", "down_proj", "layers.0.mlp.up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 3.0},
    },
    "miss": {"method": "miss", "rank": 6},
    "miss-mini": {"method": "miss", "rank": 8, "mini_rank": 8},
    "bat": {"method": "bat", "rank": 8},
    "gralora": {"method": "gralora", "rank": 4, "alpha": 8.0, "hybrid_rank": 2},
    "randlora": {"method": "randlora", "rank": 7},
    "vera": {"method": "vera", "rank": 32, "start": 1.0},
    "nola": {"method": "nola", "rank": 4, "bases": 8},
    "hira": {
        "method": "hira",
        "rank": 512,
    },  # of small weights a product, so small changes have small effects
    "oft": {"method": "oft", "block_size": 8},
    "shira": {"method": "shira", "rank": 4},
    "loha": {"method": "loha", "rank": 4, "alpha": 64.0, "draw": "normal"},
    "lokr": {"method": "lokr", "rank": 2, "alpha": 16.0, "factor": 4, "zero": "w1"},
    "hra": {"method": "hra", "rank": 4},
    "delora": {"method": "delora", "rank": 4, "bound": 4.0},
    "boft": {"method": "boft", "block_size": 4, "butterfly_factor": 1},
    "kasa": {"method": "kasa", "rank": 4},
    "lokr-full": {"method": "lokr", "rank": 64, "alpha": 8.0, "factor": 4},
    "fourierft": {"method": "fourierft", "frequencies": 100, "scale": 30.0},
    "c3a": {"method": "c3a", "block_size": 8, "start": "gaussian"},
    "vblora": {"method": "vblora", "vectors": 40, "vector_length": 8, "bound": 0.5},
    "vblora-3": {"method": "vblora", "vectors": 300, "vector_length": 8, "bound": 0.5, "top_k": 3},
    "asymmetry": {"method": "asymmetry", "train": "A"},
    "allora": {"method": "allora", "rank": 4},
    "s2_lora": {"method": "s2_lora", "rank": 8},
}


def recipe_for(folder, adapter, quantization="none", init="default"):
    section = {"name": str(folder), "dtype": "float32"}
    data = {"train": "x.jsonl", "format": "text"}
    return Recipe.model_validate(
        {"model": section, "adapter": adapter, "quantization": quantization, "init": init, "data": data}
    )


def adapted_model(recipe):
    model = load_model(recipe.model)
    sites, _ = choose(linear_sites(model), recipe.adapter.targets)
    store = lambda w, b: QUANTIZERS.get(recipe.quantization.method)(w, b, recipe.quantization)  # noqa: E731
    init = INITS.get(recipe.init.method)(recipe.init)
    builder = SiteBuilder(store, ADAPTERS.get(recipe.adapter.method), recipe.adapter, init)
    attach(model, make_plan(sites, recipe.adapter), builder)
    torch.manual_seed(4)
    for info in parameter_infos(model):
        with torch.no_grad():
            info.param.add_(0.05 * torch.randn_like(info.param))
    model.eval()
    return model


def our_logits(model, ids):
    positions = torch.arange(ids.shape[1])[None]
    none = ids.new_empty(0)
    with torch.no_grad():
        return model(Batch(ids, positions, ((0, 0, ids.shape[1]),), none, none))


def dequantized_base(recipe, model):
    """The dense base whose weights are what training saw."""
    dense = load_model(recipe.model)
    weights = dict(dense.hf.named_parameters())
    with torch.no_grad():
        for name, base, _ in frozen_layers(model):
            weight = base.weight()
            weights[f"{name}.weight"].copy_(weight.mT if name in model.transposed else weight)
    dense.hf.set_attn_implementation("eager")
    return dense.hf


@pytest.mark.parametrize(
    ("case", "quantization"), [("lora", "int8"), *((case, q) for case in CASES for q in ("none", "nf4"))]
)
def test_peft_computes_our_logits(tiny, tmp_path, case, quantization):
    from peft import PeftModel

    recipe = recipe_for(tiny("llama", tied=False, bias=True), CASES[case], quantization)
    model = adapted_model(recipe)
    tokenizer, _ = load_tokenizer(recipe.model)
    write_adapter_folder(tmp_path / "adapter", adapter_files(model, recipe, {"step": 1}), tokenizer)
    peft = PeftModel.from_pretrained(dequantized_base(recipe, model), tmp_path / "adapter").eval()
    ids = torch.randint(3, 400, (1, 12))
    with torch.no_grad():
        theirs = peft(input_ids=ids).logits
    torch.testing.assert_close(our_logits(model, ids), theirs, atol=1e-4, rtol=1e-4)
    bare = our_logits(load_model(recipe.model), ids)
    assert (bare - theirs).abs().max() > 1e-2  # the adapter does something, so equality says something


@pytest.mark.parametrize("case", ["lora", "gralora", "randlora", "vera", "hira", "fourierft", "vblora"])
def test_peft_computes_our_logits_on_transposed_layers(tiny, tmp_path, case):
    from peft import PeftModel

    recipe = recipe_for(tiny("gpt2"), CASES[case])
    model = adapted_model(recipe)
    tokenizer, _ = load_tokenizer(recipe.model)
    write_adapter_folder(tmp_path / "adapter", adapter_files(model, recipe, {"step": 1}), tokenizer)
    peft = PeftModel.from_pretrained(dequantized_base(recipe, model), tmp_path / "adapter").eval()
    ids = torch.randint(3, 400, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(model, ids), peft(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "case", ["miss", "bat", "oft", "shira", "c3a", "loha", "lokr", "hra", "delora", "boft", "kasa"]
)
def test_what_peft_has_not_on_transposed_layers_ships_under_our_own_names(tiny, case):
    recipe = recipe_for(tiny("gpt2"), CASES[case])
    files = adapter_files(adapted_model(recipe), recipe, {"step": 1})
    assert "adapter.safetensors" in files and "adapter_config.json" not in files


def test_what_peft_reads_in_float32_alone_is_written_so(tiny, tmp_path):
    """Its compact form of a vector bank: the shares of the vectors, beside a bank in the model's precision."""
    from peft import PeftModel

    recipe = recipe_for(tiny("llama"), CASES["vblora"])
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    model = adapted_model(recipe)
    files = adapter_files(model, recipe, {"step": 1})
    kinds = {name.rpartition(".")[2]: t.dtype for name, t in load(files["adapter_model.safetensors"]).items()}
    assert kinds["vblora_vector_bank"] == torch.bfloat16
    assert kinds["vblora_logits_A_topk_weights"] == kinds["vblora_logits_B_topk_weights"] == torch.float32
    tokenizer, _ = load_tokenizer(recipe.model)
    write_adapter_folder(tmp_path / "adapter", files, tokenizer)
    peft = PeftModel.from_pretrained(dequantized_base(recipe, model), tmp_path / "adapter").eval()
    ids = torch.randint(3, 400, (1, 12))
    with torch.no_grad():
        theirs = peft(input_ids=ids).logits.float()
    torch.testing.assert_close(our_logits(model, ids).float(), theirs, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_residual_start_is_a_plain_lora_of_twice_the_rank_on_the_pretrained_base(
    tiny, tmp_path, init, rslora
):
    """What ships fits the original base, not the residual: no other adapter on it is disturbed."""
    from peft import PeftModel

    adapter = {**CASES["patterns"], "rslora": rslora}
    recipe = recipe_for(tiny("llama", tied=False, bias=True), adapter, init=init)
    model = adapted_model(recipe)
    tokenizer, _ = load_tokenizer(recipe.model)
    write_adapter_folder(tmp_path / "adapter", adapter_files(model, recipe, {"step": 1}), tokenizer)
    pretrained = load_model(recipe.model).hf
    pretrained.set_attn_implementation("eager")
    peft = PeftModel.from_pretrained(pretrained, tmp_path / "adapter").eval()
    ids = torch.randint(3, 400, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(model, ids), peft(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_the_config_is_sorted_short_and_names_last_parts(tiny):
    recipe = recipe_for(tiny(), CASES["lora"])
    files = adapter_files(adapted_model(recipe), recipe, {"step": 1})
    config = json.loads(files["adapter_config.json"])
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert config["r"] == 4
    assert config["lora_alpha"] == 32
    assert list(config) == sorted(config)


def test_the_same_adapter_gives_the_same_bytes(tiny):
    recipe = recipe_for(tiny(), CASES["dora"])
    model = adapted_model(recipe)
    assert adapter_files(model, recipe, {}) == adapter_files(copy.deepcopy(model), recipe, {})


def test_layers_that_peft_would_look_for_in_fused_experts_ship_under_our_own_names(tiny):
    attention = recipe_for(tiny("qwen2_moe"), {"method": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]})
    assert "adapter_config.json" in adapter_files(adapted_model(attention), attention, {"step": 1})
    whole = recipe_for(tiny("qwen2_moe"), {"method": "lora", "rank": 2})
    model = adapted_model(whole)
    assert "adapter.safetensors" in adapter_files(model, whole, {"step": 1})
    assert why_own_form(model, whole) == (
        "PEFT takes down_proj, gate_proj, up_proj of a mixture of experts for the experts themselves"
    )
