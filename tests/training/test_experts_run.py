"""A run on experts that were taken apart: stopped and resumed it is unbroken, and merged it is what it was."""

from __future__ import annotations

import pytest

from lrft.api.merging.merge import merge
from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from tests.training.unbroken import goes_on_unbroken

ON_EXPERTS = ["model.experts=split", "train.keep_last=9", "train.max_steps=4", "train.save_every=2"]
# A product of all experts with dropout; experts one by one; weights of experts beside; experts that restarts fold into.
VARIANTS = [
    ["quantization=none", "model.dtype=float32"],
    ["adapter={method: dora, rank: 4}"],
    ["adapter.targets=[q_proj]", "trainable=[experts.1.down_proj.weight]", "quantization=none"],
    ["restart={method: relora, every: 2}", "adapter.dropout=0", "quantization=int8"],
]


@pytest.mark.parametrize(
    "variant", [VARIANTS[0], *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[1:])], ids=str
)
def test_cut_off_and_resumed_is_unbroken_and_merges(recipe_file, tmp_path, short_answers, variant):
    loaded = load_recipe(recipe_file(family="mixtral"), [*ON_EXPERTS, *variant])
    train(loaded, tmp_path / "whole", resume=False)
    goes_on_unbroken(loaded, tmp_path / "whole", 2, tmp_path / "broken")
    record = merge(tmp_path / "broken", tmp_path / "merged", dtype="float32")
    assert abs(record["kl_mean"]) < (1e-5 if "model.dtype=float32" in variant else 1e-2)


def test_a_dry_run_counts_experts_and_says_what_reaches_them(recipe_file):
    whole, apart = (
        plan(load_recipe(recipe_file(family="mixtral"), [f"model.experts={e}"])) for e in ("whole", "split")
    )
    assert "model.experts: split reaches" in whole["matrices"]["sentence"]
    assert apart["matrices"]["unreached"] < 0.01
    matrices = 2 * 4  # layers, experts
    of_experts = matrices * 4 * ((64 + 2 * 128) + (128 + 64))
    assert apart["trainable_parameters"] - whole["trainable_parameters"] == of_experts
    assert apart["memory_bytes"]["linear_weights"] < apart["base_parameters"]  # 4 bits a weight, and scales


def test_recipes_without_the_key_have_the_hash_they_had(recipe_file):
    plain, said, apart = (
        recipe_hash(load_recipe(recipe_file(family="mixtral"), lines).recipe)
        for lines in ([], ["model.experts=whole"], ["model.experts=split"])
    )
    assert plain == said != apart
