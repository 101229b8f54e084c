"""What `trainable` names trains under its own name, on every storage and beside every adapter, or is refused."""

from __future__ import annotations

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.build.measure import measure
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapters_off
from lrft.core.batch import Batch
from lrft.model.load import load_model
from lrft.model.trained import base_parameters, parameter_infos, put_back, trained_tensors
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError

# Of settings: those that every width takes, those without a default.
NEEDED = {
    "rank": 8,
    "group_size": 8,
    "block_size": 8,
    "vector_length": 8,
    "ids": [3, 5],
    "features": {"task": ["a", "b"]},
}
BESIDE = [
    name
    for name, declared in ((name, ADAPTERS.declared(name)) for name in ADAPTERS.names())
    if "adapters" not in declared.config.model_fields and "fixed_base" not in declared.requires
]


def recipe_of(folder, trainable, adapter="lora", quantization="none", **more):
    section = {"name": str(folder), "dtype": "float32"}
    data = {"train": "x.jsonl", "format": "text"}
    written = {"model": section, "adapter": adapter, "quantization": quantization, "data": data, **more}
    return Recipe.model_validate({**written, "trainable": trainable})


def biases_of(recipe):
    return {n for n, _ in load_model(recipe.model).hf.named_parameters() if n.endswith(".bias")}


def hidden(model):
    ids = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    none = torch.empty(0, dtype=torch.long)
    return model.hidden(Batch(ids, torch.arange(9).expand(2, 9), ((0, 0, 9), (1, 0, 9)), none, none))


def moved(model):
    """Names of the base weights whose gradient is not zero after one pass."""
    hidden(model).square().sum().backward()
    return {name for name, parameter in base_parameters(model) if parameter.grad.abs().sum() > 0}


@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("quantization", QUANTIZERS.names())
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_biases_train_under_their_own_names_on_every_storage(tiny, family, quantization, adapter):
    targets = ["down_proj", "v_proj"] if family == "qwen2" else ["c_attn", "mlp.c_proj"]
    section = adapter and {"method": adapter, "rank": 4, "targets": targets}
    recipe = recipe_of(tiny(family), ["*.bias"], section, quantization)
    model = adapt(recipe).model
    assert {name for name, _ in base_parameters(model)} == biases_of(recipe) == moved(model)
    infos = {info.name: info for info in parameter_infos(model) if not info.site}
    assert {info.role for info in infos.values()} == {"vector"}
    assert biases_of(recipe) == {
        name.removeprefix("base.") for name in trained_tensors(model) if name.startswith("base.")
    }
    assert all(
        info.block == ".".join(name.split(".")[:3]) for name, info in infos.items() if ".layers." in name
    )


@pytest.mark.parametrize("adapter", BESIDE)
def test_biases_train_beside_every_adapter(tiny, adapter):
    declared = ADAPTERS.declared(adapter).config.model_fields
    section = {"method": adapter, **{key: value for key, value in NEEDED.items() if key in declared}}
    recipe = recipe_of(tiny("llama", tied=False, bias=True), ["*.bias"], section)
    model = adapt(recipe).model
    assert moved(model) == biases_of(recipe)
    assert measure(recipe, optimizer=False)["trainable"] == sum(
        i.param.numel() for i in parameter_infos(model)
    )


def test_the_bare_base_has_its_pretrained_weights_put_back(tiny):
    recipe = recipe_of(tiny("qwen2"), ["*.bias", "norm.weight"])
    model, bare = adapt(recipe).model, load_model(recipe.model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    trained = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
    with torch.no_grad(), adapters_off(model), put_back(model, bare):
        torch.testing.assert_close(hidden(model), hidden(bare))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in trained_tensors(model).items())


@pytest.mark.parametrize("pattern", ["v_proj.weight", "layers.1.*", "self_attn.*"])
@pytest.mark.parametrize("quantization", ["none", "nf4_reference"])
def test_a_layer_with_an_adapter_does_not_train_its_own_weight(tiny, pattern, quantization):
    recipe = recipe_of(tiny("qwen2"), [pattern], {"method": "lora", "targets": ["v_proj"]}, quantization)
    with pytest.raises(
        RecipeError, match=r"layers\.\d\.self_attn\.v_proj\.weight.*adapter\.targets"
    ) as refused:
        adapt(recipe)
    assert "trainable.weights: " in str(refused.value)
    with pytest.raises(RecipeError, match=r"v_proj\.weight"):
        plan_without_weights(recipe, load_model(recipe.model, meta=True))


def test_a_storage_that_nothing_is_left_for_is_refused(tiny):
    with pytest.raises(RecipeError, match=r"every linear layer trains itself.*quantization: none") as refused:
        adapt(recipe_of(tiny(), ["*.weight"], None, "nf4_reference"))
    assert "quantization.method: " in str(refused.value)
    model = adapt(recipe_of(tiny(), ["v_proj.weight"], None, "nf4_reference")).model
    assert len(moved(model)) == 2


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("lm_head.weight", r"lm_head\.weight, which is tied to model\.embed_tokens\.weight"),
        ("*inv_freq", r"inv_freq, a constant that no gradient reaches"),
        ("v_proj.bais", r"no parameter of the model; did you mean .*bias"),
    ],
)
def test_a_pattern_that_names_nothing_that_can_train_says_what_it_names(tiny, pattern, said):
    with pytest.raises(RecipeError, match=said) as refused:
        adapt(recipe_of(tiny("qwen2"), [pattern]))
    assert "trainable.weights: " in str(refused.value)


def test_what_stands_in_an_adapted_block_trains_under_its_own_name(tiny):
    recipe = recipe_of(tiny("llama", tied=False, bias=True), ["mlp.*", "*norm.weight"], "mixlora")
    model = adapt(recipe).model
    known = dict(load_model(recipe.model).hf.named_parameters())
    assert moved(model) == {n for n in known if ".mlp." in n or n.endswith("norm.weight")}
    roles = {info.name: info.role for info in parameter_infos(model)}
    assert {roles[name] for name in moved(model) if name.endswith("_proj.weight")} == {"matrix"}


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_base_weight_says_how_it_is_stored_and_which_of_its_rows_are_a_head(tiny, family):
    model = adapt(recipe_of(tiny(family), "full", None)).model
    config = model.hf.config
    infos = {info.name: info for info in parameter_infos(model)}
    heads = {name: len(info.param) // info.head_rows for name, info in infos.items() if info.head_rows}
    expected = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": count
        for layer in range(config.num_hidden_layers if family == "qwen2" else 0)
        for name, count in (("q", config.num_attention_heads), ("k", config.num_key_value_heads))
    }
    assert heads == expected
    stored = {name for name, info in infos.items() if info.transposed}
    conv = {name for name in infos if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    assert stored == conv and bool(conv) == (family == "gpt2")
