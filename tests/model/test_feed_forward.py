"""Whole feed-forward blocks as sites: under the names that families give them, mixtures among them, or told."""

from __future__ import annotations

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.model.load import load_model
from lrft.model.sites import mlp_sites
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.model.test_families import batch_of


def section_of(folder):
    return ModelSection(name=str(folder), dtype="float32")


def recipe_of(folder, method, **settings):
    return Recipe.model_validate(
        {
            "model": section_of(folder).model_dump(),
            "adapter": {"method": method, **settings},
            "data": {"train": "x.jsonl", "format": "text"},
        }
    )


@pytest.mark.parametrize(
    ("family", "leaf", "inner"),
    [
        ("llama", "mlp", 128),
        ("gpt2", "mlp", 256),
        ("falcon_h1", "feed_forward", 128),
        ("lfm2", "feed_forward", None),
        ("recurrent_gemma", "mlp_block", None),
        ("mixtral", "mlp", 0),
    ],
)
def test_every_layer_has_one_under_the_name_that_the_family_gives_it(tiny, family, leaf, inner):
    model = load_model(section_of(tiny(family)), meta=True)
    sites = mlp_sites(model)
    assert [name.rpartition(".")[2] for name in sites] == [leaf] * 2
    for site in sites.values():
        assert (site.kind, site.in_features, site.out_features) == ("mlp", 64, 64)
        assert inner is None or site.inner_features == inner


@pytest.mark.parametrize("family", ["opt", "granitemoehybrid"])
def test_a_method_of_feed_forward_blocks_does_not_go_without_them(tiny, family):
    """OPT has none of its own; beside a mixture of Granite stands another block, whose outputs are added to it."""
    for method in ("compacter", "mixlora"):
        with pytest.raises(
            RecipeError, match=f"{method} cannot go on this model: it has no feed-forward block called mlp"
        ):
            adapt(recipe_of(tiny(family), method))


def test_experts_do_not_turn_to_plain_lora_where_the_block_is_a_mixture_already(tiny):
    with pytest.raises(RecipeError, match="needs a block of gate_proj, up_proj, down_proj and act_fn"):
        adapt(recipe_of(tiny("mixtral"), "mixlora"))


@pytest.mark.parametrize("method", ["mixlora", "llava_mole"])
def test_a_block_whose_layers_hold_no_floating_numbers_is_tried_as_well(tiny, method):
    """Blocks of GGUF's formats are bytes alone."""
    given = recipe_of(tiny(), method, layers="1").model_dump() | {"quantization": "q4_0"}
    model = adapt(Recipe.model_validate(given)).model
    assert any(site.adapter.site.kind == "mlp" for _, site in adapted(model))


@pytest.mark.parametrize("family", ["lfm2", "qwen3_moe", "gpt_oss", "llama4_text"])
def test_compacter_stands_behind_every_feed_forward_block_and_changes_what_it_gives(tiny, family):
    model = adapt(recipe_of(tiny(family), "compacter", bottleneck=8)).model
    blocks = [site for _, site in adapted(model) if site.adapter.site.kind == "mlp"]
    assert len(blocks) == 2
    batch = batch_of([[[5, 6, 7, 8, 9, 10]], [[11, 12, 13]]], 6)
    with torch.no_grad():
        before = model.hidden(batch)
        for block in blocks:
            block.adapter.b_up[::2] = 0.5
            after = model.hidden(batch)
            assert (after - before).abs().max() > 1e-3
            before = after


@pytest.mark.parametrize("method", ["compacter", "prefix_tuning"])
@pytest.mark.parametrize(("family", "without"), [("llama", 0), ("lfm2", 1), ("jamba", 1), ("qwen3_next", 1)])
def test_layers_with_something_in_the_place_of_attention_are_told_of(tiny, method, family, without):
    notes = adapt(recipe_of(tiny(family), method)).notes
    told = [note for note in notes if "have no attention" in note]
    assert [note.startswith(f"adapter: {without} of 2 layers") for note in told] == [True] * bool(without)
