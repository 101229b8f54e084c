"""PEFT loads adapters of experts by `target_parameters` and computes our logits; what it has no form for is said."""

from __future__ import annotations

import json

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.build.earlier_peft import read_peft
from lrft.core.adapted import adapted
from lrft.export.expert_form import on_experts, taken_for_experts
from lrft.export.peft_format import adapter_files, why_own_form
from lrft.export.write import write_adapter_folder
from lrft.model.experts import join
from lrft.model.load import load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import frozen_layers
from lrft.registry.errors import RecipeError
from tests.each import each
from tests.export.test_peft_format import our_logits
from tests.model.test_experts import moved, recipe_of

BOTH = ["experts.down_proj", "experts.gate_up_proj"]
EVERY = ["gate_up_proj", "experts.*.down_proj", "q_proj"]
CASES = {
    "mixtral": ("mixtral", {"targets": EVERY}, ["q_proj"], BOTH),
    "qwen2_moe": ("qwen2_moe", {"targets": EVERY}, ["q_proj"], BOTH),
    "qwen3_moe": ("qwen3_moe", {"targets": EVERY}, ["q_proj"], BOTH),
    "olmoe": ("olmoe", {"targets": EVERY}, ["q_proj"], BOTH),
    "transposed, with biases": ("gpt_oss", {"targets": EVERY}, ["q_proj"], BOTH),
    "one tensor": ("mixtral", {"targets": ["gate_up_proj"]}, [], ["experts.gate_up_proj"]),
    "the other": ("mixtral", {"targets": ["experts.*.down_proj"]}, [], ["experts.down_proj"]),
    "one layer": (
        "mixtral",
        {"targets": ["experts.*"], "layers": 1},
        [],
        [f"model.layers.1.mlp.{name}" for name in BOTH],
    ),
    "some experts": ("mixtral", {"targets": ["experts.0.*", "experts.3.down_proj"]}, [], BOTH),
    "ranks by expert": ("mixtral", {"targets": ["experts.*"], "rank_pattern": {"experts.1.*": 2}}, [], BOTH),
    "ranks by tensor": (
        "mixtral",
        {"targets": ["experts.*"], "rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"down_proj": 3.0}},
        [],
        BOTH,
    ),
    "a base in few bits": ("mixtral", {"targets": EVERY}, ["q_proj"], BOTH),
    "rslora": ("mixtral", {"targets": ["experts.*"], "rslora": True, "dropout": 0.1}, [], BOTH),
}


def decoded_base(recipe, model):
    """transformers' model with the weights that training saw."""
    dense = load_model(recipe.model)
    with torch.no_grad():
        for name, base, _ in frozen_layers(model):
            dense.hf.get_parameter(f"{name}.weight").copy_(base.weight())
    join(dense.hf)
    dense.hf.set_attn_implementation("eager")
    return dense.hf


@each("case", list(CASES))
def test_peft_computes_our_logits_of_adapted_experts(case, tiny, tmp_path):
    from peft import PeftModel

    family, adapter, modules, parameters = CASES[case]
    recipe = recipe_of(tiny(family), adapter, "nf4" if "bits" in case else "none")
    model = moved(recipe).eval()
    folder = tmp_path / case.replace(" ", "_")
    write_adapter_folder(folder, adapter_files(model, recipe, {"step": 1}), load_tokenizer(recipe.model)[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["target_modules"], config["target_parameters"]) == (modules, parameters)
    dense = decoded_base(recipe, model)
    ids = torch.randint(3, 400, (1, 12))
    with torch.no_grad():
        before = dense(input_ids=ids).logits
        got = PeftModel.from_pretrained(dense, folder).eval()(input_ids=ids).logits
    wanted = our_logits(model, ids)
    assert (before - wanted).abs().max() > 1e-2
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"method": "dora"}, "PEFT has no form for dora on experts as it was trained here"),
        ({"method": "hira"}, "PEFT has no form for hira on experts as it was trained here"),
    ],
)
def test_what_peft_has_no_form_for_on_experts_ships_under_our_own_names(tiny, adapter, why):
    recipe = recipe_of(tiny("mixtral"), adapter)
    model = moved(recipe)
    files = adapter_files(model, recipe, {"step": 1})
    assert "adapter.safetensors" in files and "adapter_config.json" not in files
    assert why_own_form(model, recipe) == why and on_experts(model)


def test_shared_experts_beside_are_still_taken_for_the_experts_by_peft(tiny):
    model = moved(recipe_of(tiny("qwen2_moe")))
    assert taken_for_experts(model) == ["down_proj", "gate_proj", "up_proj"]
    outside = moved(recipe_of(tiny("qwen2_moe"), {"targets": ["q_proj", "experts.*.down_proj"]}))
    assert taken_for_experts(outside) == []


def test_weights_of_experts_that_train_beside_have_no_form(tiny):
    recipe = recipe_of(tiny("mixtral"), {"targets": ["q_proj"]}, trainable=["experts.1.down_proj.weight"])
    assert "adapter_config.json" not in adapter_files(moved(recipe), recipe, {"step": 1})


@each("case", ["mixtral", "transposed, with biases", "one tensor", "one layer", "ranks by tensor", "rslora"])
def test_a_training_begins_with_what_peft_holds_of_experts(case, tiny, tmp_path):
    family, adapter, _, _ = CASES[case]
    recipe = recipe_of(tiny(family), adapter)
    model = moved(recipe)
    folder = tmp_path / case.replace(" ", "_")
    folder.mkdir()
    for name, content in adapter_files(model, recipe, {"step": 1}).items():
        (folder / name).write_bytes(content)
    sites = {name: module.adapter.site for name, module in adapted(model.hf)}
    given, method, _ = read_peft(folder, sites, "lora")
    assert method == "lora" and given.keys() == sites.keys()
    for name, module in adapted(model.hf):
        held = given[name].adapter
        assert held.scaling == module.adapter.scaling, name
        assert all(
            torch.equal(t, held.state_dict()[key]) for key, t in module.adapter.state_dict().items()
        ), name


def test_experts_of_an_adapter_are_refused_where_they_would_be_left_behind(tiny, tmp_path):
    recipe = recipe_of(tiny("mixtral"), {"targets": EVERY})
    for name, content in adapter_files(moved(recipe), recipe, {"step": 1}).items():
        (tmp_path / name).write_bytes(content)
    whole = adapt(
        recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update={"experts": "whole"}),
                "adapter": recipe.adapter.model_copy(update={"targets": ["q_proj"]}),
            }
        )
    ).model
    sites = {name: module.adapter.site for name, module in adapted(whole.hf)}
    with pytest.raises(
        RecipeError, match=r"model\.adapter: changes .*experts, .*write model\.experts: split"
    ):
        read_peft(tmp_path, sites, "lora")
    other = json.loads((tmp_path / "adapter_config.json").read_text()) | {
        "target_parameters": ["experts.down_proj"]
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(other))
    sites = {name: module.adapter.site for name, module in adapted(adapt(recipe).model.hf)}
    with pytest.raises(RecipeError, match=r"experts\.base_layer, or should, by its target_parameters"):
        read_peft(tmp_path, sites, "lora")
