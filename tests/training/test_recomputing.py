"""`model.activation_checkpointing: auto` computes again as few layers as the memory there is asks for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from lrft.api.planning import plan as plans
from lrft.api.planning.plan import memory_bytes
from lrft.api.training.train import train
from lrft.build import recomputing
from lrft.build.activations import activation_bytes
from lrft.build.measure import measure
from lrft.build.recomputing import GB, SHARE, choose, free_bytes
from lrft.data.steps import Shape
from lrft.model.load import load_model
from lrft.model.probe import batch_of
from lrft.model.recompute import recomputable, recompute
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.training.test_step import job_of, loss_and_gradients, whole_epoch
from tests.training.unbroken import losses

RECIPES = Path(__file__).parents[2] / "recipes"
AUTO = "model.activation_checkpointing=auto"
SHAPES = [Shape(1, 500, (200, 200, 100))]


@pytest.fixture
def meta(recipe_file):
    def make(*overrides):
        recipe = load_recipe(recipe_file(), overrides).recipe
        return recipe, load_model(recipe.model, meta=True)

    return make


def test_no_layer_and_all_layers_take_what_false_and_true_take(meta):
    recipe, model = meta()
    checkpointed, _ = meta("model.activation_checkpointing=true")
    layers = model.hf.config.num_hidden_layers
    by_count = [activation_bytes(recipe, model, SHAPES, count) for count in range(layers + 1)]
    assert by_count[0] == activation_bytes(recipe, model, SHAPES)
    assert by_count[-1] == activation_bytes(checkpointed, model, SHAPES)
    item, hidden = 2, model.hf.config.hidden_size
    kept = by_count[0].blocks // layers
    whole, inputs = (2, 1, 1), (0, 1, 2)
    assert [found.blocks for found in by_count] == [
        many * kept + few * 500 * hidden * item for many, few in zip(whole, inputs, strict=True)
    ]


def test_of_a_deep_model_every_layer_more_takes_less(llama3):
    recipe, model = llama3(AUTO)
    taken = [sum(activation_bytes(recipe, model, SHAPES, count)) for count in range(32)]
    steps = {a - b for a, b in itertools.pairwise(taken)}
    assert len(steps) == 1 and steps.pop() > 0


def test_as_few_layers_as_the_free_memory_asks_for(llama3):
    recipe, model = llama3(AUTO)
    needed = [10**9 + sum(activation_bytes(recipe, model, SHAPES, count)) for count in range(32)]

    def layers(free):
        found = choose(recipe, model, SHAPES, free, 10**9)
        assert found.needed == needed[found.layers] and found.of == 32
        return found.layers

    assert layers(needed[0] / SHARE + 1) == 0
    for count in (1, 2, 9, 31):
        assert layers(needed[count] / SHARE + 1) == count
    assert layers(needed[9] / SHARE - 1) == 10
    assert sum(activation_bytes(recipe, model, SHAPES, 32)) + 10**9 > needed[31]  # so it is never the choice
    beyond = choose(recipe, model, SHAPES, needed[31], 10**9)
    assert beyond.layers == 31 and beyond.sentence().endswith("GB that are free, more than is planned with")


@pytest.fixture
def llama3(tmp_path):
    """`llama3(*overrides)` -> the shipped recipe and its model without weights, of the real configuration."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ).save_pretrained(tmp_path / "llama3")

    def make(*overrides):
        named = [f"model.name={tmp_path / 'llama3'}", *overrides]
        recipe = load_recipe(RECIPES / "llama-gsm8k-dora.yaml", named).recipe
        return recipe, load_model(recipe.model, meta=True)

    return make


def test_the_shipped_llama_recipe_fits_24_gb_and_would_not_without(llama3):
    """Every row of its full length, which is more than its data ask for."""
    recipe, model = llama3()
    counted = measure(recipe, model)
    rows, length = recipe.train.batch_size, recipe.train.max_length
    shapes = [Shape(rows, length, (length,) * rows)]
    plain = memory_bytes(recipe, model, counted, shapes)
    taken = plain["total_estimated"] - plain["activations_estimated"] - plain["attention_estimated"]
    found = choose(recipe, model, shapes, 24 * GB, taken)
    total = memory_bytes(recipe, model, counted, shapes, found.layers)["total_estimated"]
    assert total == found.needed <= SHARE * 24 * GB < plain["total_estimated"]
    assert 0 < found.layers < 32
    fewer = memory_bytes(recipe, model, counted, shapes, found.layers - 1)["total_estimated"]
    assert fewer > SHARE * 24 * GB


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_layers_run_twice_and_the_others_once(tiny, recipe_file, family):
    recipe = load_recipe(recipe_file(family=family)).recipe
    model = load_model(recipe.model)
    layers = recomputable(model.hf)
    assert len(layers) == 2
    ran = []
    for number, layer in enumerate(layers):
        inner = next(module for module in layer.modules() if not list(module.children()))
        inner.register_forward_pre_hook(lambda *_, n=number: ran.append(n))
    model.hf.get_input_embeddings().weight.requires_grad_(True)
    model.train()
    for count, expected in ((0, [0, 1]), (1, [0, 1, 0]), (2, [0, 1, 1, 0])):
        recompute(model.hf, count)
        ran.clear()
        model.hidden(batch_of([[[5, 6, 7]]])).sum().backward()
        assert ran == expected


def test_a_model_without_a_way_to_do_so_is_refused(recipe_file, monkeypatch):
    model = load_model(load_recipe(recipe_file()).recipe.model)
    model.hf.supports_gradient_checkpointing = False
    recompute(model.hf, 0)
    with pytest.raises(RecipeError, match=r"model.activation_checkpointing: LlamaForCausalLM cannot compute"):
        recompute(model.hf, 1)


def of_free(monkeypatch, free):
    monkeypatch.setattr(recomputing, "free_bytes", lambda device: free)
    monkeypatch.setattr(plans, "free_bytes", lambda device: free)


def test_a_recomputed_layer_changes_no_gradient(recipe_file, tmp_path):
    plain, expected = whole_epoch(recipe_file, tmp_path)
    job = job_of(recipe_file, tmp_path, "data.train.limit=8")
    recompute(job.run.model.hf, 1)
    assert [layer.gradient_checkpointing for layer in recomputable(job.run.model.hf)] == [True, False]
    loss, gradients = loss_and_gradients(job)
    assert torch.equal(loss, plain)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)


def test_a_run_says_and_records_its_choice_and_keeps_it(recipe_file, tmp_path, monkeypatch, capsys):
    short = [AUTO, "train.max_steps=4", "train.save_every=2", "~train.eval_every", "train.keep_last=9"]
    loaded = load_recipe(recipe_file(), short)
    of_free(monkeypatch, 0.0)
    planned = plans.plan(loaded)
    assert planned["recomputed_layers"] == 1 and "1 of 2 layers" in planned["recomputed_why"]
    of_free(monkeypatch, 1e12)
    assert plans.plan(loaded)["recomputed_layers"] == 0
    train(loaded, tmp_path / "roomy", resume=False)
    of_free(monkeypatch, 0.0)
    out = tmp_path / "tight"
    train(loaded, out, resume=False)
    said = capsys.readouterr().err
    assert (
        said.count("model.activation_checkpointing: 1 of 2 layers are computed again in the backward pass")
        == 1
    )
    assert said.count("model.activation_checkpointing: 0 of 2 layers") == 1
    assert json.loads((tmp_path / "roomy" / "run.json").read_text())["recomputed_layers"] == 0
    assert json.loads((out / "run.json").read_text())["recomputed_layers"] == 1
    assert losses(out) == losses(tmp_path / "roomy")
    of_free(monkeypatch, 1e12)
    (out / "result.json").unlink()
    train(loaded, out, resume=True)
    assert json.loads((out / "run.json").read_text())["recomputed_layers"] == 1


def test_true_and_false_are_as_they_were_and_ask_for_no_memory(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(recomputing, "free_bytes", lambda device: pytest.fail("nobody asked"))
    for value, layers in (("true", 2), ("false", 0)):
        more = [f"model.activation_checkpointing={value}", "train.max_steps=2", "~train.eval_every"]
        train(load_recipe(recipe_file(), more), tmp_path / value, resume=False)
        assert json.loads((tmp_path / value / "run.json").read_text())["recomputed_layers"] == layers


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(recomputing, "GROUP", tmp_path)
    whole = free_bytes("cpu")
    assert 2**26 < whole < 2**50
    for name, text in (
        ("memory.max", "5000"),
        ("memory.current", "3000"),
        ("memory.stat", "file 900\ninactive_file 700"),
    ):
        (tmp_path / name).write_text(f"{text}\n")
    assert free_bytes("cpu") == 5000 - 3000 + 700
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 2**26


def test_of_a_gpu_what_torch_keeps_for_later_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40)
    assert free_bytes("cuda") == 130
