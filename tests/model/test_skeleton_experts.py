"""Mixtures of experts are planned as they are built: counts to the last number, kept bytes within two percent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lrft.api.planning.ahead import plan_ahead
from lrft.api.planning.fit import device_of, forecast
from lrft.build.measure import measure
from lrft.model.described import build_skeleton
from lrft.model.skeleton import Skeleton
from lrft.model.skeleton_families import FAMILIES, why_no_skeleton
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.each import each
from tests.kept import computing
from tests.model.test_skeleton import growth, planned_bytes, real_bytes

MIXED = [name for name, family in FAMILIES.items() if family.experts is not None]
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}


def shape(family, *sizes, experts, **more):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "num_experts_per_tok")
    key, count = experts
    return {
        "model_type": family,
        **dict(zip(names, sizes, strict=True)),
        key: count,
        "hidden_act": "silu",
        **more,
    }


# Parameters as the models' pages give them, to the last one.
SIZES = {
    46_702_792_704: shape("mixtral", 32000, 4096, 14336, 32, 32, 8, 2, experts=("num_local_experts", 8)),
    6_919_161_856: shape("olmoe", 50304, 2048, 1024, 16, 16, 16, 8, experts=("num_experts", 64)),
    14_315_784_192: shape(
        *("qwen2_moe", 151936, 2048, 5632, 24, 16, 16, 4),
        experts=("num_experts", 60),
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
    ),
    30_532_122_624: shape(
        *("qwen3_moe", 151936, 2048, 6144, 48, 32, 4, 8),
        experts=("num_experts", 128),
        moe_intermediate_size=768,
        head_dim=128,
    ),
    15_706_484_224: shape(
        *("deepseek_v2", 102400, 2048, 10944, 27, 16, 16, 6),
        experts=("n_routed_experts", 64),
        moe_intermediate_size=1408,
        n_shared_experts=2,
        first_k_dense_replace=1,
        q_lora_rank=None,
        **LATENT,
    ),
    671_026_404_352: shape(
        *("deepseek_v3", 129280, 7168, 18432, 61, 128, 128, 8),
        experts=("n_routed_experts", 256),
        moe_intermediate_size=2048,
        n_shared_experts=1,
        first_k_dense_replace=3,
        q_lora_rank=1536,
        **LATENT,
    ),
}


def recipe_of(model, *more, experts="split"):
    long = ["train.device=cpu", "model.dtype=bfloat16", "train.max_length=64", "adapter.dropout=0"]
    return load_recipe(
        "recipes/smoke/lora.yaml", [f"model.name={model}", *long, f"model.experts={experts}", *more]
    ).recipe


@each("size", SIZES)
def test_a_published_mixture_has_its_published_number_of_parameters(size):
    assert why_no_skeleton(SIZES[size]) == ""
    assert sum(p.numel() for p in Skeleton(SIZES[size], torch.bfloat16).parameters()) == size


@each("family", MIXED)
def test_counts_and_bytes_are_those_of_the_modules_that_training_builds(family, tiny):
    for experts in ("whole", "split"):
        recipe = recipe_of(tiny(family), experts=experts)
        peaks = forecast(recipe, device_of(recipe, "1GiB"))[0]
        assert peaks.mixed and peaks.counted == measure(recipe)
        assert ("split" in peaks.counted["matrices"]["sentence"]) == (experts == "whole")


@each("family", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_what_a_token_keeps_in_experts_that_are_apart_is_planned_within_two_percent(family, tiny):
    recipe = recipe_of(tiny(family))
    with computing(False):
        assert growth(planned_bytes, recipe) == pytest.approx(growth(real_bytes, recipe), rel=0.02)


def test_experts_keep_activations_for_as_many_tokens_as_are_sent_to_them(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("qwen3_moe"), tmp_path / "model"))
    config, kept = json.loads((folder / "config.json").read_text()), []
    for chosen in (1, 2, 4):
        (folder / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": chosen}))
        kept.append(growth(planned_bytes, recipe_of(folder, experts="whole")))
    assert kept[1] - kept[0] > 0 and kept[2] - kept[1] == 2 * (kept[1] - kept[0])


def test_files_with_other_experts_than_their_configuration_says_are_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("mixtral"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    with pytest.raises(
        RecipeError, match=r"holds 197,120 numbers of experts, where its config.json says 394,240"
    ):
        build_skeleton(recipe_of(folder).model)


def test_what_has_no_experts_or_other_ones_is_told(tiny):
    with pytest.raises(RecipeError, match=r"has no experts to split; write whole"):
        build_skeleton(recipe_of(tiny()).model)
    config = SIZES[46_702_792_704]
    assert why_no_skeleton({**config, "model_type": "llama"}) == "8 experts"
    assert why_no_skeleton({**config, "num_local_experts": 0}) == "no experts in the configuration"
    assert why_no_skeleton({**config, "router_jitter_noise": 0.1}) == "router_jitter_noise 0.1"
    assert why_no_skeleton({**config, "model_type": "granitemoe"}) == "model_type granitemoe"


def test_a_plan_says_that_an_even_spread_over_the_experts_is_an_estimate(tiny):
    found = plan_ahead("recipes/smoke/lora.yaml", "1GiB", overrides=[f"model.name={tiny('mixtral')}"])
    assert "tokens are taken to be spread evenly over the experts, which is an estimate" in found["assumes"]
