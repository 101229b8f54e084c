"""LoRAPrune beside the authors' formulas written out, and the pruned model on disk beside the one that trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lrft.api.exporting.export import export
from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.core.adapted import Adapted, adapters_off
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.core.units import Units, prunable
from lrft.export.merge import merge_into
from lrft.export.uneven import write_units
from lrft.methods.prune.loraprune import LoRAPrune, hide, importance
from lrft.model.load import load_model
from lrft.model.trained import parameter_infos
from lrft.model.units import find_units
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError, UsageError
from tests.methods.prune.small import batch, in_transformers, logits, made, recipe_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "loraprune.yaml"
HEADS = Units("b", "heads", 0, 2, {"b.q": 4, "b.k": 2, "b.v": 2}, {"b.o": 4})
SHAPES = {"b.q": (8, 6), "b.k": (4, 6), "b.v": (4, 6), "b.o": (6, 8)}


def pruner(**settings):
    return LoRAPrune(LoRAPrune.Config(method="loraprune", **settings))


def site_of(name, shape):
    site = Site(name, shape[1], shape[0])
    lora = ADAPTERS.get("lora")
    adapter = lora(lora.Config(method="lora", rank=3, alpha=6), site)
    base = QUANTIZERS.get("none")(torch.randn(shape), None, config=QUANTIZERS.settings("none"))
    for factor in (adapter.A, adapter.B):
        nn.init.normal_(factor)
        factor.grad = torch.randn_like(factor)
    return Adapted(base, adapter)


def test_importance_is_that_of_the_authors_code():
    torch.manual_seed(0)
    sites = {name: site_of(name, shape) for name, shape in SHAPES.items()}
    expected = torch.zeros(2)
    for name, site in sites.items():
        A, B = site.adapter.A.detach(), site.adapter.B.detach()
        dA, dB = 0.5 * site.adapter.A.grad, 0.5 * site.adapter.B.grad
        left = (B - dB) @ (A - dA)
        values = ((B @ A - left) * (site.base.weight() + 2 * B @ A)).abs()
        values = values.T if name == "b.o" else values
        sums = torch.stack([values[: len(values) // 2].sum(), values[len(values) // 2 :].sum()])
        expected += sums / sums.norm()
    torch.testing.assert_close(importance(HEADS, sites, 0.5), expected)


def test_the_schedule_is_cubic_and_reaches_the_ratio():
    method = pruner(ratio=0.6, begin=0.2, every=10)
    shares = {step: share for step in range(100) if (share := method.share(step, 100)) is not None}
    assert list(shares) == [*range(20, 90, 10), 90]
    assert shares[90] == 0.6
    assert shares[50] == pytest.approx(0.6 - 0.4 * (1 - 40 / 80) ** 3)
    assert [step for step in range(3) if pruner(every=1).share(step, 3) == 0.5] == [2]
    assert pruner(every=10, cooldown=0.0).share(99, 100) == 0.5


def test_units_that_are_hidden_stay_so_and_the_smallest_follow():
    stays = torch.tensor([1, 1, 0, 1, 1], dtype=torch.uint8)
    hide(stays, torch.tensor([0.3, 0.1, 9.0, 0.0, 0.2]), 0.5)
    assert stays.tolist() == [1, 1, 0, 0, 1]
    hide(stays, torch.zeros(5), 0.99)
    assert stays.sum() == 1  # one is always left


def test_as_many_layers_are_pruned_as_in_the_authors_code():
    units = [Units(f"{depth}", "channels", depth, 8, {}, {}) for depth in range(32)]
    assert [one.depth for one in prunable(units, 0.1, 1)] == list(range(3, 31))
    with pytest.raises(RecipeError, match="nothing is pruned"):
        prunable(units[:1], 0.0, 1)


@pytest.mark.parametrize(
    "family",
    ["llama", pytest.param("qwen2", marks=pytest.mark.slow), pytest.param("qwen3", marks=pytest.mark.slow)],
)
def test_hidden_units_give_the_outputs_and_gradients_of_the_authors_masks(tiny, family):
    recipe = recipe_of(tiny(family), "loraprune")
    ours, theirs = made(recipe), made(recipe_of(tiny(family), None))
    whole = logits(ours)
    for name, units in ours.pruned.units.items():
        stays = ours.pruned.stays[name]
        stays[1::2] = 0
        for layer, width in units.rows.items():  # q, k, v, gate and up, after their biases
            mask = stays.repeat_interleave(width).float()
            theirs.hf.get_submodule(layer).register_forward_hook(lambda _, x, y, mask=mask: y * mask)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-6)
    assert (logits(ours) - whole).abs().max() > 1e-3
    with adapters_off(ours):  # the base is the whole one
        torch.testing.assert_close(logits(ours), logits(load_model(recipe.model)))
    found = []
    for model in (ours, theirs):
        model(batch()).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "uneven", "own"),
    [("llama", False, False), ("qwen2", False, False), ("llama", True, True), ("helium", False, True)],
)
def test_transformers_loads_what_is_left_and_computes_the_same(tiny, tmp_path, family, uneven, own):
    """Helium's o_proj is as wide as the model, however many heads its settings say."""
    recipe = recipe_of(tiny(family), "loraprune")
    model = made(recipe)
    for name, units in model.pruned.units.items():
        if not uneven or units.depth == 0:
            model.pruned.stays[name][1::2] = 0
    dense = load_model(recipe.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    dense.hf.save_pretrained(tmp_path)
    write_units(dense.hf, model, tmp_path)
    if own:
        with pytest.raises((RuntimeError, ValueError), match=r"mismatch|size|trust_remote_code"):
            in_transformers(tmp_path)
    loaded = in_transformers(tmp_path, trust_remote_code=True) if own else in_transformers(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    whole, left = load_model(recipe.model).hf.num_parameters(), loaded.num_parameters()
    assert whole - left == cut_away(model, recipe)


def cut_away(model, recipe):
    """Numbers of the rows, columns and biases of the units that went."""
    held, gone = dict(load_model(recipe.model).hf.named_parameters()), 0
    for name, units in model.pruned.units.items():
        count = int((1 - model.pruned.stays[name].int()).sum())
        gone += sum(count * w * held[f"{layer}.weight"].shape[1] for layer, w in units.rows.items())
        gone += sum(count * w for layer, w in units.rows.items() if f"{layer}.bias" in held)
        gone += sum(count * w * held[f"{layer}.weight"].shape[0] for layer, w in units.columns.items())
    return gone


@pytest.mark.parametrize("family", ["gpt2", "phi3", "llama4_text", "stablelm"])
def test_blocks_that_hold_their_units_otherwise_are_refused(tiny, family):
    """Beside a shared expert others stay whole; StableLM's attention splits by a number of heads of its own."""
    with pytest.raises(RecipeError, match="heads and channels can be told apart"):
        find_units(load_model(recipe_of(tiny(family), None).model))


def test_a_block_without_an_adapter_is_refused(tiny):
    recipe = recipe_of(tiny(), "loraprune", {"method": "lora", "targets": ["q_proj"]})
    model = made(recipe)
    infos = parameter_infos(model)
    run = Run(model, infos, torch.optim.SGD([i.param for i in infos]), None, 9)
    with pytest.raises(RecipeError, match=r"adapter\.targets: adapts no layer of model\.layers\.0\.mlp"):
        pruner(whole_first=0.0, whole_last=0).start(run)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["none", "nf4_reference", "int8_reference"])
@pytest.mark.usefixtures("short_answers")
def test_a_run_prunes_merges_smaller_and_is_no_adapter(tiny, tmp_path, storage):
    small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    done = train(load_recipe(SMOKE, [*small, f"quantization={storage}"]), tmp_path / "run", resume=False)
    assert done["units"] == {
        f"model.layers.{depth}.{block}": count
        for depth in range(2)
        for block, count in (("self_attn", 1), ("mlp", 64))
    }
    record = merge(tmp_path / "run", tmp_path / "merged")
    assert record["logit_error_max"] < 1e-5
    assert record["generation"]["agrees"]
    loaded = in_transformers(tmp_path / "merged")
    assert loaded.config.num_key_value_heads == 1 and loaded.config.intermediate_size == 64
    assert not (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    with pytest.raises(UsageError, match="no adapter says which heads"):
        export(tmp_path / "run", "lora", tmp_path / "plain")
