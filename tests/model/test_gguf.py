"""A GGUF file becomes the model that transformers decodes, rounded once, and is never held in memory as a whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrft.model import gguf as files
from lrft.model.load import load_model
from lrft.model.on_disk import parameters_on_disk
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from tests.tiny_gguf import LAYERS, write_gguf

pytest.importorskip("gguf")


@pytest.fixture
def made(tiny, tmp_path, monkeypatch):
    """`made(tied)` -> a tiny Llama as a GGUF file, matrices in 8 bits, with the tokenizer of the tests."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))

    def make(tied=True):
        path = tmp_path / "tiny.gguf"
        write_gguf(path, tiny(), tied)
        return path

    return make


def decoded(path):
    """What transformers makes of the file in float32, whole."""
    from transformers import AutoModelForCausalLM, GgufConfig

    config = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=config
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_tensors_are_those_of_transformers_rounded_once(made, tmp_path, dtype, tied):
    path = made(tied)
    decoded(path).save_pretrained(tmp_path / "whole")
    expected, found = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "whole", files.converted(path, dtype))
    )
    assert expected.keys() == found.keys() and ("lm_head.weight" in found) is not tied
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_fingerprint_does_not_know_how_the_file_was_kept(made, tmp_path, dtype):
    path = made()
    decoded(path).save_pretrained(tmp_path / "whole")
    whole, kept = (
        load_model(ModelSection(name=str(name), dtype=dtype)) for name in (tmp_path / "whole", path)
    )
    assert whole.fingerprint == kept.fingerprint
    assert whole.hf.config.dtype == kept.hf.config.dtype == getattr(torch, dtype)


def test_a_conversion_is_kept_and_leaves_nothing_beside_it(made):
    path = made()
    folder = files.converted(path, "bfloat16")
    first = (folder / "model.safetensors").stat().st_mtime_ns
    assert files.converted(path, "bfloat16") == folder != files.converted(path, "float32")
    assert (folder / "model.safetensors").stat().st_mtime_ns == first
    assert {p.name.rpartition("-")[2] for p in folder.parent.iterdir()} >= {"bfloat16", "float32"}
    assert len(list(folder.parent.iterdir())) == 3 and not (folder / "parameters").exists()


def test_the_tokenizer_is_read_without_the_weights(made, monkeypatch):
    from transformers import AutoModelForCausalLM

    def refuse(*arguments, **settings):
        raise AssertionError("weights were read")

    path = made()
    section = ModelSection(name=str(path), dtype="bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
        tokenizer, stops = load_tokenizer(section)
        hf = load_model(section, meta=True).hf
    assert not list(files.described(path).glob("*.safetensors"))
    assert stops == {2} and tokenizer("an order").input_ids
    loaded = load_model(section).hf
    assert {n: p.shape for n, p in hf.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }


def test_what_a_family_keeps_in_float32_is_not_rounded(made, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
    kept = load_file(files.converted(made(), "bfloat16") / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_parameters_live_in_files_and_tied_ones_in_one(tmp_path):
    values = torch.randn(8, 4)
    with parameters_on_disk(tmp_path / "parameters", torch.bfloat16):
        one, two = nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False, device="meta")
        one.weight = nn.Parameter(values, requires_grad=False)
        assert two.weight.is_meta
        two.weight = one.weight
    assert one.weight is two.weight and not one.weight.requires_grad
    assert torch.equal(one.weight, values.bfloat16())
    assert one.weight.untyped_storage().filename.startswith(str(tmp_path))
    assert nn.Linear(4, 8).weight.untyped_storage().filename is None


def test_while_it_is_converted_every_parameter_is_in_a_file(made, monkeypatch):
    from transformers import LlamaForCausalLM

    seen = []
    save = LlamaForCausalLM.save_pretrained

    def look(self, *arguments, **settings):
        seen.extend(p.untyped_storage().filename is not None for p in self.parameters())
        return save(self, *arguments, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", look)
    files.converted(made(), "bfloat16")
    assert len(seen) == 2 + 9 * LAYERS and all(seen)


def test_a_run_on_such_a_base_is_merged_tensor_by_tensor_into_the_same_files(
    made, tiny, tmp_path, monkeypatch
):
    from lrft.api.merging.merge import Merge, merge
    from lrft.api.training.train import train
    from lrft.model import asked

    rows = "".join(json.dumps({"text": f"{word} has two pens and buys three more"}) + "\n" for word in "abcd")
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = {
        "model": {"name": str(made()), "tokenizer": str(tiny()), "dtype": "float32"},
        "adapter": {"method": "lora", "rank": 2},
        "quantization": "nf4_reference",
        "data": {"train": str(tmp_path / "rows.jsonl"), "format": "text"},
        "train": {"max_steps": 1, "max_length": 48, "device": "cpu"},
        "export": {"tolerance": 9, "dtype": "bfloat16"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    train(tmp_path / "recipe.yaml", tmp_path / "run")
    merge(tmp_path / "run", tmp_path / "whole")
    monkeypatch.setattr(asked, "SMALL", 0)
    monkeypatch.setattr(Merge, "_load", lambda *_: pytest.fail("the dense model was loaded as a whole"))
    merge(tmp_path / "run", tmp_path / "streamed")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "streamed" / path.name).read_bytes(), path.name
