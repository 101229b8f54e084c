"""What a GGUF file says of tokens, rotary positions and formats; and what llama.cpp would do otherwise is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gguf
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from lrft.export.gguf_config import rope_factors, write_config
from lrft.export.gguf_names import Names
from lrft.export.gguf_tensors import Entry, allowed, check_file, read_file, write_file
from lrft.export.gguf_tokenizer import Spoken, write_tokenizer
from lrft.model.gguf_tokens import SPLITS, gguf_tokenizer
from lrft.registry.errors import LrftError, NumericalError, UsageError

TEXTS = [
    "It's 12345 + 6,789.\n\n  So?",
    "naïve\tx\r\n\r\n y  ",
    "<|im_start|>user\nDON'T<|im_end|>\n",
    "日本 1२3",
]


def tokenizer_splitting(tiny, split: str, whole: bool = False):
    """The tiny tokenizer with another rule of splitting."""
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    plain = split in ("", "digits")
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    if split == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif split:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.backend_tokenizer.model.ignore_merges = whole
    return tokenizer


def written(tokenizer, path, rows: int = 520, stops: tuple[int, ...] = (2,)) -> list[str]:
    writer = gguf.GGUFWriter(path, "llama")
    spoken = Spoken(tokenizer, list(stops), 0, False, tokenizer.chat_template)
    told = write_tokenizer(writer, spoken, rows, "--for gguf")
    write_file(gguf, writer, [Entry("x.weight", torch.zeros(2, 2), "float32")], stochastic=False)
    return told


@pytest.mark.parametrize(("split", "whole"), SPLITS, ids=SPLITS.values())
def test_a_tokenizer_comes_back_with_its_tokens(tiny, tmp_path, split, whole):
    tokenizer = tokenizer_splitting(tiny, split, whole)
    assert written(tokenizer, tmp_path / "x.gguf") == []
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == SPLITS[split, whole]
    back = gguf_tokenizer(tmp_path / "x.gguf")
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert back(text, add_special_tokens=False)["input_ids"] == expected
    assert back.chat_template == tokenizer.chat_template and back.eos_token == "<|im_end|>"


def test_rules_that_llama_cpp_has_no_name_for_are_refused(tiny, tmp_path):
    with pytest.raises(UsageError, match="no name known here for how text is split"):
        written(tokenizer_splitting(tiny, r"\d+"), tmp_path / "x.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    slow = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps(state)))
    with pytest.raises(UsageError, match="BPE with bytes apart is not written here"):
        write_tokenizer(None, Spoken(slow, [2], 0, False, None), 520, "--for gguf")


def test_a_fourth_stop_is_told(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    (note,) = written(tokenizer, tmp_path / "x.gguf", stops=(2, 5, 6, 7))
    assert note == f"a GGUF file names three stop tokens, so {tokenizer.convert_ids_to_tokens(7)} is left out"


def config_of(family: str, **settings):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return AutoConfig.for_model(family, **{**shape, "max_position_embeddings": 1024, **settings})


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act: gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type: yarn",
        ),
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 64}, "query_pre_attn_scalar: 64"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "layer_types"),
        ("gpt2", {}, "gpt2 models are not written as GGUF here"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, family, settings, says):
    with pytest.raises(UsageError, match=says):
        names = Names(config_of(family, **settings), "--for gguf")
        write_config(gguf.GGUFWriter(tmp_path / "x.gguf", "llama"), names, 520)


def test_a_window_that_llama_cpp_has_not_ends_the_context(tmp_path):
    names = Names(config_of("mistral", sliding_window=256), "--for gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    assert "the file's context ends at 256 tokens" in write_config(writer, names, 520)[0]
    assert writer.kv_data[0]["llama.context_length"].value == 256


def test_llama_3s_frequencies_are_divided_as_its_authors_do():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 128
    config = config_of("llama", rope_parameters=rope)
    found = rope_factors(Names(config, ""), LlamaRotaryEmbedding(config).inv_freq)
    waves = [2 * torch.pi * 5e5 ** (k / 16) for k in range(0, 16, 2)]
    smooth = [(128 / wave - 1) / 3 for wave in waves]
    expected = [1 / ((1 - s) / 8 + s) if 0 < s < 1 else 1.0 if s >= 1 else 8.0 for s in smooth]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)
    assert any(1 < factor < 8 for factor in expected) and {1.0, 8.0} <= set(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_a_file_is_within_its_precision_and_a_wrong_number_is_found(tmp_path, dtype):
    torch.manual_seed(0)
    values = torch.randn(6, 64) * 10 ** torch.randn(6, 1)
    entries = [Entry("a.weight", values, dtype), Entry("b.weight", torch.randn(7), dtype)]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    write_file(gguf, writer, entries, stochastic=True)
    found = read_file(gguf, tmp_path / "x.gguf")
    assert check_file(tmp_path / "x.gguf", entries, found) == 2
    assert found["b.weight"].equal(entries[1].values)
    row = int(values.abs().amax(1).argmin())
    found["a.weight"][row, 3] += 3 * float((allowed(entries[0]) + torch.zeros_like(values))[row, 3]) + 1e-6
    with pytest.raises(LrftError, match=r"a\.weight does not read back"):
        check_file(tmp_path / "x.gguf", entries, found)


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_numbers_beyond_the_precision_are_refused(tmp_path, dtype):
    entries = [Entry("a.weight", torch.full((2, 32), 1e8), dtype)]
    with pytest.raises(NumericalError, match=r"a\.weight: its largest value"):
        write_file(gguf, gguf.GGUFWriter(tmp_path / "x.gguf", "llama"), entries, stochastic=False)
