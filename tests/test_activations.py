"""The memory plan's attention against the bytes that a forward pass really keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lrft.build.activations import activation_bytes, attention_layers, feed_forward_width, not_estimated
from lrft.build.recomputing import choose
from lrft.data.steps import Shape
from lrft.model.load import load_model
from lrft.model.probe import batch_of
from lrft.ops.attention_blocks import BLOCK, LONG
from lrft.recipe.load import load_recipe
from tests.kept import keeping
from tests.training.conftest import RECIPE, ROOT


@pytest.fixture
def recipe(tiny, tmp_path):
    def make(family="llama", *overrides):
        path = tmp_path / "tiny.yaml"
        data = ROOT / "recipes" / "data" / "quickstart"
        path.write_text(RECIPE.format(model=tiny(family), dtype="bfloat16", data=data))
        return load_recipe(path, overrides).recipe

    return make


def kept_bytes(model, lengths):
    """Bytes of all storages that the body's forward pass saves for one row of documents."""
    ids = [[5 + k % 400 for k in range(n)] for n in lengths]
    with keeping() as held:
        y = model.hidden(batch_of([ids]))
    del y
    return sum(held.values())


def shape_of(*lengths):
    return Shape(1, sum(lengths), lengths)


def trainable(recipe):
    model = load_model(recipe.model)
    model.hf.get_input_embeddings().weight.requires_grad_(True)
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_of_short_documents_the_plan_knows_what_is_kept_to_the_byte(recipe, family, dtype):
    recipe = recipe(family, f"model.dtype={dtype}")
    model = trainable(recipe)
    few, many = (300, 100), (100, 100, 100, 100)
    planned = [activation_bytes(recipe, model, [shape_of(*lengths)]) for lengths in (few, many)]
    real = kept_bytes(model, few) - kept_bytes(model, many)
    assert planned[0].attention - planned[1].attention == real > 0
    assert planned[0].blocks == planned[1].blocks


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_plan_knows_what_attention_dropout_keeps(recipe, dtype):
    recipe = recipe("gpt2", f"model.dtype={dtype}")
    model = trainable(recipe)
    model.hf.config.attn_pdrop = 0.1
    for module in model.hf.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.1
    model.hf.train()
    few, many = (300, 100), (100, 100, 100, 100)
    planned = [activation_bytes(recipe, model, [shape_of(*lengths)]).attention for lengths in (few, many)]
    assert planned[0] - planned[1] == kept_bytes(model, few) - kept_bytes(model, many) > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_of_other_backends_it_knows_the_square_of_the_row(recipe, attention):
    recipe = recipe("llama", f"model.attention={attention}")
    model, lengths = trainable(recipe), ((100, 100), (150, 150), (200, 200))

    def bend(values):
        return values[0] - 2 * values[1] + values[2]

    planned = [activation_bytes(recipe, model, [shape_of(*pair)]).attention for pair in lengths]
    assert bend(planned) == bend([kept_bytes(model, pair) for pair in lengths]) > 0


def test_of_a_long_document_only_the_room_of_its_blocks_is_planned(recipe):
    recipe = recipe()
    model = trainable(recipe)
    config = model.hf.config
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    for n in (LONG + 1, 1000):
        found = activation_bytes(recipe, model, [shape_of(n)]).attention
        assert found == n * (2 * heads * BLOCK * 4 + 2 * pairs * width * 4)  # products in float32 at the most
    quarter = [kept_bytes(model, [n]) for n in (600, 800, 1000)]
    assert quarter[0] - 2 * quarter[1] + quarter[2] == 0


def test_the_largest_micro_batch_is_planned_for_and_rows_of_full_length_where_none_is_known(recipe):
    recipe = recipe("llama", "train.batch_size=3", "train.max_length=160", "train.packing=false")
    model = load_model(recipe.model, meta=True)
    small, large = shape_of(40, 50), shape_of(150, 20)
    assert activation_bytes(recipe, model, [small, large]) == activation_bytes(recipe, model, [large])
    assert activation_bytes(recipe, model) == activation_bytes(
        recipe, model, [Shape(3, 160, (160, 160, 160))]
    )


def test_checkpointing_keeps_the_attention_of_one_layer(recipe):
    whole, remade = recipe(), recipe("llama", "model.activation_checkpointing=true")
    model = load_model(whole.model, meta=True)
    layers = model.hf.config.num_hidden_layers
    shape = [shape_of(200)]
    assert (
        activation_bytes(whole, model, shape).attention
        == layers * activation_bytes(remade, model, shape).attention
    )


@pytest.mark.parametrize(
    ("family", "attentions", "states"),
    [
        ("llama", 2, 0),
        ("qwen3", 2, 0),
        ("llama4_text", 2, 0),
        ("lfm2", 1, 0),
        ("jamba", 1, 1),
        ("qwen3_next", 1, 1),
        ("recurrent_gemma", 1, 1),
        ("falcon_h1", 2, 2),
        ("mamba", 0, 2),
    ],
)
def test_layers_with_an_attention_are_counted_and_those_with_a_state_told_of(
    recipe, family, attentions, states
):
    """Those of Falcon-H1 have both."""
    recipe = recipe(family, "model.dtype=float32")
    model = load_model(recipe.model, meta=True)
    config = model.hf.config
    assert attention_layers(config) == attentions
    assert not_estimated(config).startswith(f"{states} layers carry a state" if states else "")
    assert bool(not_estimated(config)) == bool(states)
    chosen = choose(recipe, model, [shape_of(200)], free=1e12, taken=0.0)
    assert ("carry a state" in chosen.sentence()) == bool(states)


def test_a_token_goes_through_the_experts_that_it_is_sent_to(recipe):
    """OLMoE's names the width of one expert, Qwen2-MoE's stand beside a shared one, DeepSeek's first layer is dense."""
    sizes = {
        "llama": 128,
        "mixtral": 2 * 128,
        "olmoe": 2 * 128,
        "qwen3_moe": 128,
        "qwen2_moe": 128,
        "deepseek_v3": 128,
    }
    for family, size in sizes.items():
        config = load_model(recipe(family).model, meta=True).hf.config
        assert feed_forward_width(config) == size, family
    config.num_experts_per_tok, config.n_shared_experts = 8, 1
    assert feed_forward_width(config) == 9 * config.moe_intermediate_size
    assert feed_forward_width(SimpleNamespace(hidden_size=64, intermediate_size=[512, 1024])) == 1024
    assert feed_forward_width(load_model(recipe("opt").model, meta=True).hf.config) == 128
