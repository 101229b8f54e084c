"""A model whose weights are read one by one is the one that is read whole, bit for bit, and is never held dense."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import lrft.build.adapt as build
from lrft.build.adapt import adapt
from lrft.model import asked, promised
from lrft.model.load import load_model, open_model
from lrft.model.stored import NotStreamed, Stored, stored_at
from lrft.model.trained import base_parameters
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError
from tests.wide_llama import dense_bytes, write_wide_llama

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    monkeypatch.setattr(asked, "SMALL", 0)


def recipe_of(folder, quantization="nf4_reference", dtype="float32", **more):
    section = {"name": str(folder), "dtype": dtype}
    data = {"train": "x.jsonl", "format": "text"}
    written = {"model": section, "adapter": {"method": "lora", "rank": 4}, "quantization": quantization}
    return Recipe.model_validate({**written, "data": data, **more})


def read_whole(monkeypatch, recipe):
    with monkeypatch.context() as patch:
        patch.setattr(build, "gains_by_streaming", lambda *_: False)
        return adapt(recipe)


def opened(folder, **section):
    return open_model(recipe_of(folder, **section).model)


def check_same(whole, streamed):
    """Every parameter and buffer, what stands for the base, and what was found out about the model."""
    for found in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(a.model.hf, found)()) for a in (whole, streamed))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name
            assert tensor.requires_grad == other[name].requires_grad, name
    for name in ("fingerprint", "softcap", "scale", "attention", "direct", "transposed"):
        assert getattr(whole.model, name) == getattr(streamed.model, name), name
    assert (whole.plan, whole.packing, whole.notes) == (streamed.plan, streamed.packing, streamed.notes)
    assert whole.model.hf.config.to_dict() == streamed.model.hf.config.to_dict()
    assert whole.model.hf.generation_config.to_dict() == streamed.model.hf.generation_config.to_dict()
    assert streamed.model.unread is None and whole.model.fingerprint


FAMILIES = ["llama", "gemma2", "phi3", "gpt2", "granite", "mixtral", "lfm2", "opt", "falcon_mamba"]
VARIANTS = [("llama", False, True), ("qwen2", False, False), ("gpt2", False, False)]


@pytest.mark.parametrize(("family", "tied", "bias"), [(f, True, False) for f in FAMILIES] + VARIANTS)
def test_a_streamed_model_is_the_one_read_whole(tiny, monkeypatch, family, tied, bias):
    recipe = recipe_of(tiny(family, tied=tied, bias=bias))
    unread = open_model(recipe.model)
    waiting = [name for name, p in unread.hf.named_parameters() if stored_at(p) is not None]
    assert waiting and all(unread.hf.get_parameter(name).is_meta for name in waiting)
    check_same(read_whole(monkeypatch, recipe), adapt(recipe))


@pytest.mark.parametrize("storage", ["nf4", "fp4", "int8", "nf_blocks"])
def test_every_storage_holds_the_same_bytes(tiny, monkeypatch, storage):
    recipe = recipe_of(tiny("gpt2"), storage, "bfloat16")  # whose files hold float32
    check_same(read_whole(monkeypatch, recipe), adapt(recipe))


@pytest.mark.parametrize(
    "init",
    [
        "pissa",
        {"method": "pissa", "residual": "anchor"},
        "loftq",
        {"method": "lq_lora", "budget": 3.5, "weighting": "none"},
    ],
)
def test_an_init_sees_the_true_weight(tiny, monkeypatch, init):
    storage = "nf_blocks" if isinstance(init, dict) and "budget" in init else "nf4_reference"
    recipe = recipe_of(tiny("llama"), storage, init=init)
    check_same(read_whole(monkeypatch, recipe), adapt(recipe))


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["nf4", "none"])
def test_on_a_gpu_every_storage_holds_the_same_bytes(tiny, monkeypatch, storage):
    recipe = recipe_of(tiny("llama"), storage, "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(build, "gains_by_streaming", lambda *_: False)
        whole = adapt(recipe, device="cuda")
    assert build.gains_by_streaming(recipe, torch.device("cuda"), saved=False)
    check_same(whole, adapt(recipe, device="cuda"))


def test_layers_that_train_keep_their_weight_and_the_fingerprint_knows_it(tiny, monkeypatch):
    recipe = recipe_of(tiny("llama"), trainable=["*layers.1.mlp.*.weight", "*norm.weight"])
    recipe = recipe.model_copy(
        update={"adapter": recipe.adapter.model_copy(update={"targets": ["q_proj", "v_proj"]})}
    )
    whole, streamed = read_whole(monkeypatch, recipe), adapt(recipe)
    check_same(whole, streamed)
    trained = dict(base_parameters(streamed.model))
    assert trained.keys() == dict(base_parameters(whole.model)).keys() and len(trained) == 8


def test_a_matrix_in_shards_is_read_from_the_shard_that_holds_it(tiny, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny()).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    recipe = recipe_of(tmp_path)
    streamed = adapt(recipe)
    check_same(read_whole(monkeypatch, recipe), streamed)
    assert streamed.model.fingerprint == load_model(recipe_of(tiny()).model).fingerprint


@pytest.mark.parametrize(
    ("edit", "tied", "config"),
    [
        (lambda t: t.pop(UP), True, {}),
        (lambda t: t.pop("lm_head.weight"), False, {}),
        (lambda t: t.update({"score.weight": torch.ones(2, 64)}), True, {}),
        (lambda t: t.update({UP: torch.ones(32, 64)}), True, {}),
        (lambda t: t.update({"model.norm.weight": torch.ones(32)}), True, {}),
        (lambda t: None, True, {"num_hidden_layers": 3}),
        (lambda t: None, True, {"vocab_size": 600}),
        (lambda t: t[UP].fill_(torch.nan), True, {}),
        (lambda t: None, True, {"is_decoder": False, "architectures": ["LlamaForSequenceClassification"]}),
    ],
)
def test_files_that_do_not_hold_the_model_are_refused_in_the_same_words(
    altered, monkeypatch, edit, tied, config
):
    recipe = recipe_of(altered(edit, tied, **config))
    with pytest.raises(RecipeError) as whole:
        read_whole(monkeypatch, recipe)
    with pytest.raises(RecipeError) as streamed:
        adapt(recipe)
    assert str(streamed.value) == str(whole.value)


def test_a_shard_that_is_gone_is_refused_in_the_same_words(tiny, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny()).save_pretrained(tmp_path, max_shard_size="100KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(RecipeError, match=r"model.name: .*could not be loaded"):
        adapt(recipe_of(tmp_path))


def test_two_heads_in_the_file_stay_two_though_the_configuration_ties_them(altered, monkeypatch):
    recipe = recipe_of(altered(tied=False, tie_word_embeddings=True))
    streamed = adapt(recipe)
    check_same(read_whole(monkeypatch, recipe), streamed)
    hf = streamed.model.hf
    assert hf.get_output_embeddings().weight is not hf.get_input_embeddings().weight
    assert hf.config.tie_word_embeddings is False


def test_experts_that_become_one_tensor_are_made_of_their_values_and_nothing_is_said(tiny):
    found = adapt(recipe_of(tiny("mixtral")))
    experts = [p for name, p in found.model.hf.named_parameters() if "experts" in name]
    assert experts and not any(p.is_meta for p in experts)
    assert not [note for note in found.notes if "weights" in note]


def as_one_tensor(folder, made):
    """The model of `folder` with the experts of a block in one tensor, which its files hold in many."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = {name: tensor.clone() for name, tensor in hf.state_dict().items() if name != "lm_head.weight"}
    shutil.copytree(folder, made)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


def apart(folder, **more):
    return recipe_of(folder, **more, model={"name": str(folder), "dtype": "float32", "experts": "split"})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_taken_apart_wait_in_either_layout_and_are_what_transformers_reads(
    tiny, tmp_path, monkeypatch, family
):
    from transformers import AutoModelForCausalLM

    folders = [tiny(family), as_one_tensor(tiny(family), tmp_path / "model")]
    held = ["model.layers.1.mlp.experts.down_proj" in load_file(f / "model.safetensors") for f in folders]
    assert held == [family == "gpt_oss", True]
    plain = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    plain.set_attn_implementation("eager")
    ids = torch.arange(5, 25)[None]
    for folder in folders:
        unread = open_model(apart(folder).model)
        named = dict(unread.hf.named_parameters())
        matrices = [p for name, p in named.items() if ".experts." in name and name.endswith("weight")]
        assert len(matrices) == 2 * 4 * 2 and all(stored_at(p) is not None for p in matrices)
        unread.unread.finish()
        unread.hf.set_attn_implementation("eager")
        with torch.no_grad():
            got, expected = unread.hf(input_ids=ids).logits, plain(input_ids=ids).logits
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    check_same(read_whole(monkeypatch, apart(folder)), adapt(apart(folder)))


def test_a_matrix_of_an_expert_is_read_alone(tiny, tmp_path, monkeypatch):
    read = []
    part, tensor = promised.Part.read, promised.read_tensor
    monkeypatch.setattr(
        promised.Part, "read", lambda self, dtype: read.append(self.index) or part(self, dtype)
    )
    monkeypatch.setattr(promised, "read_tensor", lambda file, key: read.append(key) or tensor(file, key))
    many, one = tiny("mixtral"), as_one_tensor(tiny("mixtral"), tmp_path / "one")
    for folder, expected in ((many, ["w1", "w3"]), (one, [2])):
        model = open_model(apart(folder).model)
        read.clear()
        model.unread.read("model.layers.0.mlp.experts.2.gate_up_proj")
        assert [key.split(".")[-2] if isinstance(key, str) else key for key in read] == expected


def test_tensors_in_few_bits_never_become_one():
    class InBits(Stored):
        pass

    for kind in (Stored, InBits):
        parts = [kind("file", f"key{k}", (2, 3), torch.float32).to() for k in range(2)]
        with promised.Joining():
            stacked = torch.stack(parts)
        assert stacked.shape == (2, 2, 3) and (stored_at(stacked) is None) == (kind is InBits)


def test_experts_made_in_another_way_are_read_at_once_and_taken_apart_then(tiny, monkeypatch):
    monkeypatch.setattr(promised, "_joined", lambda stacked, result, *_: result)
    found = adapt(apart(tiny("mixtral")))
    assert any(".experts.3." in name for name in found.plan) and not found.notes
    assert not any(p.is_meta for p in found.model.hf.parameters())


def test_what_cannot_be_streamed_is_read_whole_and_said_in_one_line(tiny, monkeypatch):
    class Taken(Stored):
        def __getitem__(self, index):
            return super().__getitem__(0)

    recipe = recipe_of(tiny())
    monkeypatch.setattr("lrft.model.stream.Stored", Taken)
    found = adapt(recipe)
    (note,) = found.notes
    assert note.startswith("model.name: all weights were read before any was stored (transformers takes")
    found.notes.clear()
    check_same(read_whole(monkeypatch, recipe), found)


def test_a_promise_that_was_changed_is_no_promise(tiny, monkeypatch):
    to = Stored.to
    monkeypatch.setattr(Stored, "to", lambda *given, **named: to(*given, **named).mul_(2))
    with pytest.raises(NotStreamed, match="is made of other tensors"):
        opened(tiny())


def test_a_model_that_fails_once_its_layers_are_stored_is_asked_dense(tiny, monkeypatch):
    def refuse(model, section, device):
        raise RecipeError("its logits are odd", "model.name")

    monkeypatch.setattr(build, "prove", refuse)
    found = adapt(recipe_of(tiny()))
    assert found.notes == ["model.name: all weights were read before any was stored (its logits are odd)"]
    assert found.model.fingerprint


@pytest.mark.parametrize("what", ["small", "dense", "calibrated", "random", "full"])
def test_what_gains_nothing_or_needs_the_dense_model_is_read_whole(tiny, monkeypatch, what):
    more = {
        "calibrated": {"init": "lora_ga"},
        "random": {"model": {"name": str(tiny()), "dtype": "float32", "weights": "random"}},
        "full": {"trainable": "full", "adapter": None, "quantization": "none"},
    }.get(what, {})
    recipe = recipe_of(tiny(), **{"quantization": "none" if what == "dense" else "nf4_reference", **more})
    if what != "small":
        assert not build.gains_by_streaming(recipe, torch.device("cpu"), saved=False)
        return
    monkeypatch.setattr(asked, "SMALL", 50_000_000)
    assert build.gains_by_streaming(recipe, torch.device("cpu"), saved=False)
    with pytest.raises(NotStreamed, match=r"^$"):
        open_model(recipe.model)


MEASURED = """
import re, sys
from pathlib import Path
from lrft.build.adapt import adapt
from lrft.model import asked
from lrft.recipe.schema import Recipe

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

def recipe(folder):
    return Recipe.model_validate({
        "model": {"name": folder}, "adapter": {"method": "lora", "rank": 4}, "quantization": "nf4",
        "data": {"train": "x.jsonl", "format": "text"}, "train": {"max_length": 64},
    })

asked.SMALL = 0
adapt(recipe(sys.argv[1]))  # what is imported on the way
Path("/proc/self/clear_refs").write_text("5")
before = highest()
found = adapt(recipe(sys.argv[2]))
hf = found.model.hf
print(highest() - before, sum(t.nbytes for t in {*hf.parameters(), *hf.buffers()}), found.notes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("width", "layers"),
    [(512, 30), pytest.param(2048, 28, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_the_peak_of_loading_is_the_stored_model_and_one_dense_tensor_at_work(tiny, tmp_path, width, layers):
    """Slack: nine dense tensors, which bitsandbytes' encoder works in, 0.6 MB of objects a layer, and 32 MiB."""
    write_wide_llama(tmp_path, width, layers, positions=64, files=4, room=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tiny()), str(tmp_path)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back, and is not counted
        capture_output=True,
        text=True,
        check=True,
    )
    peak, stored, notes = done.stdout.split(maxsplit=2)
    bound = int(stored) + 10 * 2 * 3 * width**2 + layers * 600_000 + (32 << 20)
    told = [
        note for note in ast.literal_eval(notes.strip()) if not note.startswith("model.dtype: this processor")
    ]
    assert not told and bound < dense_bytes(width, layers) / 1.5
    assert int(peak) < bound, f"{int(peak) >> 20} MiB over {bound >> 20}; stored are {int(stored) >> 20}"
