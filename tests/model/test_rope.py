"""Stretched positions are those of transformers, saved with what is merged, and refused where they would be wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.build.starting_plan import plan_without_weights
from lrft.core.batch import Batch
from lrft.model.load import load_config, load_model
from lrft.model.rope import positions_of
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.training.conftest import RECIPE
from tests.training.conftest import ROOT as REPOSITORY

LONG = torch.arange(1500)[None] % 300 + 5  # the tiny models have 1024 positions


def section(folder, **keys):
    return ModelSection.model_validate({"name": str(folder), "dtype": "float32", "attention": "sdpa", **keys})


def ours(model, ids):
    none = ids.new_empty(0)
    with torch.no_grad():
        return model(Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), none, none))


def theirs(folder, ids, rope, positions=None):
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_theta": config.rope_parameters["rope_theta"], **rope}
    config.max_position_embeddings = positions or config.max_position_embeddings
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
    ],
)
def test_scaled_positions_are_those_of_transformers(tiny, scaling, rope):
    model = load_model(section(tiny(), rope_scaling=scaling))
    wanted = theirs(tiny(), LONG, rope, int(1024 * scaling["factor"]))
    assert model.hf.config.max_position_embeddings == 1024 * scaling["factor"]
    torch.testing.assert_close(ours(model, LONG), wanted, atol=2e-5, rtol=1e-4)
    plain = ours(load_model(section(tiny(), context=1500)), LONG)
    assert (plain - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("scaling", ["linear", "yarn", "dynamic"])
def test_a_configuration_that_leaves_the_width_of_heads_out_can_be_scaled(tiny, scaling):
    """Mixtral's does, and what scales positions in transformers does not work it out."""
    assert AutoConfig.from_pretrained(tiny("mixtral")).head_dim is None
    model = load_model(section(tiny("mixtral"), rope_scaling={"type": scaling, "factor": 2.0}))
    assert ours(model, LONG).isfinite().all() and model.hf.config.head_dim == 16


@pytest.mark.parametrize("scaling", ["linear", "yarn", "dynamic"])
def test_a_scaling_that_the_family_would_not_be_opened_with_is_refused(tiny, scaling):
    """Phi-3's knows `longrope` alone: a merged model could not be loaded."""
    with pytest.raises(RecipeError, match=r"Phi3Config takes no positions scaled so \(.*remove it"):
        load_model(section(tiny("phi3"), rope_scaling={"type": scaling, "factor": 2.0}))


def test_a_longer_context_alone_changes_no_position(tiny):
    model, plain = load_model(section(tiny(), context=4096)), load_model(section(tiny()))
    assert model.hf.config.max_position_embeddings == 4096
    assert torch.equal(ours(model, LONG[:, :64]), ours(plain, LONG[:, :64]))
    assert model.fingerprint == plain.fingerprint


def test_dynamic_scaling_keeps_the_positions_of_training(tiny):
    model = load_model(section(tiny(), rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert model.hf.config.max_position_embeddings == 1024
    assert torch.equal(ours(model, LONG[:, :64]), ours(load_model(section(tiny())), LONG[:, :64]))
    wanted = theirs(tiny(), LONG, {"rope_type": "dynamic", "factor": 2.0})
    torch.testing.assert_close(ours(model, LONG), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"context": 512}, r"model\.context: the model has 1024 positions already"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "context": 3000},
            "reaches 2048 positions from 1024",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "context": 2048}, "has no length of its own"),
    ],
)
def test_what_does_not_reach_so_far_is_refused(tiny, keys, words):
    with pytest.raises(RecipeError, match=words):
        load_config(section(tiny(), **keys))


def test_models_without_rotary_positions_or_with_scaled_ones_are_refused(tiny, tmp_path):
    scaling = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(RecipeError, match="has no rotary positions"):
        load_config(section(tiny("gpt2"), **scaling))
    with pytest.raises(RecipeError, match="has no rotary positions"):
        load_config(section(tiny("gpt2"), context=4096))
    scaled = AutoConfig.from_pretrained(tiny())
    scaled.rope_parameters = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    scaled.save_pretrained(tmp_path / "scaled")
    with pytest.raises(RecipeError, match=r"scales its positions already \(linear\)"):
        load_config(section(tmp_path / "scaled", **scaling))


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    data = REPOSITORY / "recipes" / "data" / "quickstart"
    path.write_text(RECIPE.format(model=tiny(), dtype="float32", data=data))
    return lambda *more: load_recipe(path, ["quantization=none", "train.max_steps=2", *more])


def planned(loaded):
    return plan_without_weights(loaded.recipe, load_model(loaded.recipe.model, meta=True))


def test_rows_beyond_the_positions_are_refused_with_what_to_write(written):
    with pytest.raises(RecipeError, match=r"use at most 1024, or write model\.rope_scaling"):
        planned(written("train.max_length=2000"))
    with pytest.raises(RecipeError, match="follow the longest text seen so far"):
        planned(written("train.max_length=2000", "model.rope_scaling={type: dynamic, factor: 4}"))
    planned(written("train.max_length=2000", "model.rope_scaling={type: yarn, factor: 2}"))
    planned(written("train.max_length=2000", "model.context=2000"))


def test_without_the_keys_a_recipe_keeps_its_hash(written):
    plain = recipe_hash(written().recipe)
    assert plain == recipe_hash(written("model.rope_scaling=null", "model.context=null").recipe)
    assert plain != recipe_hash(written("model.rope_scaling={type: yarn, factor: 2}").recipe)


def test_the_merged_model_keeps_them_and_the_adapter_says_them(written, tmp_path, short_answers):
    loaded = written("model.rope_scaling={type: yarn, factor: 4}", "model.context=3000")
    train(loaded, tmp_path / "run")
    record = merge(tmp_path / "run", tmp_path / "merged")
    assert record["kl_mean"] < 1e-6
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["max_position_embeddings"] == 3000
    assert config["rope_parameters"]["rope_type"] == "yarn" and config["rope_parameters"]["factor"] == 4
    assert config["rope_parameters"]["original_max_position_embeddings"] == 1024
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "has to be loaded with rope scaling yarn by 4 and a context of 3000 positions" in card


def test_positions_are_known_by_the_name_that_mpt_gives_them(tmp_path, tiny):
    """Its table of positions ends there, and a longer row ended in an error of torch."""
    config = AutoConfig.for_model("mpt", d_model=64, n_heads=4, n_layers=2, max_seq_len=48, vocab_size=520)
    assert not hasattr(config, "max_position_embeddings")
    assert positions_of(config) == 48
    assert positions_of(AutoConfig.for_model("bloom")) is None
    folder = shutil.copytree(tiny("mpt"), tmp_path / "mpt")
    config.save_pretrained(folder)
    model = load_model(ModelSection(name=str(folder)), meta=True)
    told = {"model": {"name": str(folder)}, "adapter": "lora", "data": {"train": "x.jsonl", "format": "text"}}
    recipe = Recipe.model_validate({**told, "train": {"max_length": 64}})
    with pytest.raises(RecipeError, match="64 tokens are more than the model has positions; use at most 48"):
        plan_without_weights(recipe, model)
