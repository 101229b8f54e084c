"""LoRAM: the small base is the whole one less units, the recovered adapter is zero there; the printed reductions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.core.adapted import adapted, adapters_off
from lrft.core.units import CUT, HIDDEN, Pruned, Units, prunable, recovered, remaining
from lrft.methods.prune.loram import LoRAM, read_units
from lrft.model.load import load_model
from lrft.model.trained import load_trained_tensors, trained_tensors
from lrft.model.units import find_units, hide
from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from lrft.registry.errors import CheckpointError, RecipeError
from lrft.training.folder import RunFolder
from tests.methods.prune.small import in_transformers, logits, made, recipe_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke"
ALL = {"method": "loram", "ratio": 0.5, "whole_first": 0, "whole_last": 0}


def pruner(**settings):
    return LoRAM(LoRAM.Config(method="loram", **settings))


@pytest.mark.parametrize(("words", "printed"), [(128_256, 15.81), (32_000, 16.95)])
def test_the_published_reductions_of_the_70b_models_are_those_of_the_defaults(words, printed):
    hidden, inner, width, pairs = 8192, 28_672, 128, 8
    units, size = [], {}
    for depth in range(80):
        heads = {f"{depth}.q": 8 * width, f"{depth}.k": width, f"{depth}.v": width}
        units += [Units(f"{depth}.a", "heads", depth, pairs, heads, {f"{depth}.o": 8 * width})]
        units += [
            Units(
                f"{depth}.m", "channels", depth, inner, {f"{depth}.g": 1, f"{depth}.u": 1}, {f"{depth}.d": 1}
            )
        ]
        size |= {f"{depth}.a": 18 * width * hidden, f"{depth}.m": 3 * hidden}
    method = pruner()
    stays = {one.name: one.count for one in units} | {
        n: int(s.sum()) for n, s in method.foresee(units).items()
    }
    whole = 2 * words * hidden + sum(size[one.name] * one.count for one in units)
    left = 2 * words * hidden + sum(size[one.name] * stays[one.name] for one in units)
    assert 4 * whole / left == pytest.approx(
        printed, abs=0.01
    )  # 16 bits of the whole, 4 bits of what is left
    assert stays["3.a"] == stays["78.a"] == 8 and stays["4.a"] == stays["77.a"] == 2


def test_recovering_is_undone_by_pruning_and_adds_zeros_alone():
    stays = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    small = torch.randn(3, 4)
    whole = recovered(small, stays, 1)
    assert whole.shape == (3, 8)
    assert torch.equal(whole[:, 2:6], small) and whole[:, :2].eq(0).all() and whole[:, 6:].eq(0).all()
    assert torch.equal(recovered(small.mT, stays, 0), whole.mT)


@pytest.mark.parametrize("choose", ["random", "magnitude"])
def test_the_small_base_computes_what_the_whole_one_does_without_its_units(tiny, choose):
    recipe = recipe_of(tiny("qwen2"), {**ALL, "choose": choose})
    small, whole = made(recipe), load_model(recipe.model)
    assert small.pruned.state == CUT
    hide(whole, Pruned(small.pruned.units, small.pruned.stays, HIDDEN))
    with adapters_off(small):
        torch.testing.assert_close(logits(small), logits(whole), rtol=0, atol=1e-5)
    assert all(int(stays.sum()) == len(stays) // 2 for stays in small.pruned.stays.values())


def test_what_goes_by_magnitude_has_the_smallest_norm(tiny):
    model = load_model(recipe_of(tiny(), None).model)
    units = find_units(model)[1]
    weights = {layer: model.hf.get_submodule(layer).weight for layer in units.layers}
    for channel in (5, 9):
        for layer, weight in weights.items():
            (weight[channel] if layer in units.rows else weight[:, channel]).data.mul_(0.01)
    stays = pruner(choose="magnitude", ratio=2 / units.count)._stay(units, weights.get, 0)
    assert stays.eq(0).nonzero().flatten().tolist() == [5, 9]
    assert remaining(8, 0.999) == 1 and len(prunable([units], 0, 0)) == 1


def test_the_recovered_adapter_is_zero_where_units_were_and_as_long(tiny):
    recipe = recipe_of(tiny(), ALL)
    small = made(recipe)
    kept = trained_tensors(small)
    whole = made(recipe, saved=kept, trains=False)
    load_trained_tensors(whole, kept)
    assert trained_tensors(whole).keys() == {name for name in kept if not name.startswith("units.")}
    small_sites = dict(adapted(small.hf))
    for name, site in adapted(whole.hf):
        delta = site.adapter.change().detach()
        less = small_sites[name].adapter
        torch.testing.assert_close(delta.norm(), less.change().detach().norm())
        units = next(u for u in whole.pruned.units.values() if name in u.layers)
        gone = (
            whole.pruned.stays[units.name]
            .eq(0)
            .repeat_interleave(units.rows.get(name) or units.columns[name])
        )
        assert (delta[gone] if name in units.rows else delta[:, gone]).eq(0).all()
    with adapters_off(whole):
        torch.testing.assert_close(logits(whole), logits(load_model(recipe.model)))


def test_what_zeros_cannot_recover_is_refused(tiny):
    refused = [
        (recipe_of(tiny(), ALL, "dora"), "dora cannot be put back"),
        (recipe_of(tiny(), ALL, init="pissa"), "pissa takes a start off a base"),
        (recipe_of(tiny(), ALL, trainable=["norm.weight"]), "would train on a base that is not used"),
        (recipe_of(tiny(), ALL, analyse=["update_rank"]), "is of the whole base"),
        (recipe_of(tiny(), {**ALL, "aligned": "x"}, None, "full"), "is for an adapter to begin with"),
    ]
    for recipe, message in refused:
        assert any(message in problem.message for problem in check(recipe)), message
    with pytest.raises(RecipeError, match="nothing is pruned"):
        made(recipe_of(tiny(), "loram"))  # two layers, and the first four stay whole


def test_the_units_of_another_model_are_refused(tiny, tmp_path):
    units = find_units(load_model(recipe_of(tiny(), None).model))
    with pytest.raises(RecipeError, match=r"has no units\.json"):
        read_units(tmp_path, units)
    for kept in ({}, {one.name: [one.count] for one in units}, {one.name: [] for one in units}):
        (tmp_path / "units.json").write_text(json.dumps(kept))
        with pytest.raises(RecipeError, match="is of another model"):
            read_units(tmp_path, units)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
@pytest.mark.usefixtures("short_answers")
def test_a_base_is_aligned_and_an_adapter_of_it_serves_the_whole_one(tiny, tmp_path, storage):
    small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    aligned, last = tmp_path / "aligned", [*small, f"quantization={storage}"]
    train(load_recipe(SMOKE / "loram_align.yaml", small), tmp_path / "first", resume=False)
    assert merge(tmp_path / "first", aligned)["logit_error_max"] < 1e-5
    assert in_transformers(aligned).config.num_key_value_heads == 1

    recipe = load_recipe(SMOKE / "loram.yaml", [*last, f"prune.aligned={aligned}"])
    begun = made(recipe.recipe)
    assert {n: s.nonzero().flatten().tolist() for n, s in begun.pruned.stays.items()} == json.loads(
        (aligned / "units.json").read_text()
    )
    if storage == "none":
        with adapters_off(begun):
            torch.testing.assert_close(logits(begun), logits(in_transformers(aligned)), rtol=0, atol=1e-5)

    train(recipe, tmp_path / "run", resume=False)
    model = open_run(RunFolder(tmp_path / "run"))[2].model
    assert dict(adapted(model.hf))["model.layers.0.mlp.down_proj"].adapter.A.shape[1] == 128
    if storage == "none":
        peft = PeftModel.from_pretrained(in_transformers(tiny()), tmp_path / "run" / "adapter").eval()
        torch.testing.assert_close(logits(peft), logits(model), rtol=0, atol=1e-4)
    assert merge(tmp_path / "run", tmp_path / "merged")["kl_mean"] < 1e-5
    assert not (tmp_path / "merged" / "units.json").exists()
    left = load_file(tmp_path / "merged" / "model.safetensors")
    whole = load_file(tiny() / "model.safetensors")
    assert {n: t.shape for n, t in left.items()} == {n: t.shape for n, t in whole.items()}

    (aligned / "more.safetensors").write_bytes((aligned / "model.safetensors").read_bytes())
    method = pruner(aligned=str(aligned))
    method.load_state_dict({"model.safetensors": "0"})
    with pytest.raises(CheckpointError, match="changed since the run began"):
        method.start(None)
