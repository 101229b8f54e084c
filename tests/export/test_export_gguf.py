"""`lrft export --for gguf`: transformers reads the file and computes the run; the adapter file is llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lrft.api.exporting.export import export
from lrft.api.exporting.form import Options
from lrft.api.opening.open_run import open_run
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder
from tests.export.exported_runs import trained
from tests.export.reloaded import logits

IDS = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
LORA = "adapter: {method: lora, rank: 4, alpha: 6, rank_pattern: {o_proj: 2}}"
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"query_pre_attn_scalar": 16},
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """`run(family, body)` -> the folder of a finished run, and the run opened; the same one for the same arguments."""
    made: dict = {}

    def get(family: str = "llama", body: str = LORA, **shape):
        key = (family, body, *shape.items())
        if key not in made:
            folder = trained(tmp_path_factory.mktemp("runs"), tiny(family, **shape), body)
            made[key] = folder, open_run(RunFolder(folder))[2].model
        return made[key]

    return get


def by_transformers(folder, **unread):
    """Logits of the file; `unread` is what transformers does not read of it: it takes biases and scales as usual."""
    config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
    for key, value in unread.items():
        setattr(config, key, value)
    hf = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="model.gguf",
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        return hf(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_run_from_the_merged_file(run, tmp_path, family):
    folder, model = run(family)
    record = export(folder, "gguf", tmp_path / "out", Options(merged=True, dtype="float32"))
    ours = logits(model, IDS)
    torch.testing.assert_close(
        by_transformers(tmp_path / "out", **FAMILIES[family]), ours, atol=2e-4, rtol=2e-4
    )
    assert record["kl_mean"] < 1e-6 and record["tensors"] >= 20


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_a_lower_precision_is_as_far_from_the_run_as_is_told(run, tmp_path, dtype):
    folder, model = run("llama", tied=False, bias=True)
    record = export(folder, "gguf", tmp_path / "out", Options(merged=True, dtype=dtype))
    error = (by_transformers(tmp_path / "out", attention_bias=True, mlp_bias=True) - logits(model, IDS)).abs()
    assert 0 < error.max() < 4 * record["logit_error_max"]
    assert error.mean() == pytest.approx(record["logit_error_mean"], rel=1)
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_q.bias"] == "F32"


def test_the_file_has_the_tokenizer_the_template_and_the_stops_of_training(run, tmp_path):
    folder, _ = run()
    record = export(folder, "gguf", tmp_path / "out", Options(merged=True))
    fields = {k: f.contents() for k, f in GGUFReader(tmp_path / "out" / "model.gguf").fields.items()}
    mine = AutoTokenizer.from_pretrained(folder / "adapter")
    assert fields["tokenizer.chat_template"] == mine.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == mine.eos_token_id and record["stops"] == ["<|im_end|>"]
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.add_bos_token"] is False  # the template writes it
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 520 and tokens[519] == "[PAD519]" and fields["tokenizer.ggml.token_type"][519] == 5
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = mine.apply_chat_template(
        [{"role": "user", "content": "What is 12 + 3?\n\n naïve"}], tokenize=False
    )
    assert (
        theirs(text, add_special_tokens=False)["input_ids"]
        == mine(text, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_adapter_file_is_the_change_of_llama_cpps_own_tensors(run, tmp_path, family):
    """Base tensor of a merged file without the adapter's change, plus B A of the adapter file, is the merged one."""
    folder, model = run(family)
    export(folder, "gguf", tmp_path / "merged", Options(merged=True, dtype="float32"))
    record = export(folder, "gguf", tmp_path / "adapter")
    reader = GGUFReader(tmp_path / "adapter" / "adapter.gguf")
    fields = {k: f.contents() for k, f in reader.fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == family
    factors = {one.name: quants.dequantize(one.data, one.tensor_type) for one in reader.tensors}
    merged = {
        one.name: quants.dequantize(one.data, one.tensor_type)
        for one in GGUFReader(tmp_path / "merged" / "model.gguf").tensors
    }
    base = base_tensors(model, family, tmp_path / "base.gguf")
    assert len(factors) == 28 == record["tensors"]
    for name in {name.rpartition(".")[0] for name in factors}:
        A, B = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
        scale = fields["adapter.lora.alpha"] / A.shape[0]  # as llama.cpp has it
        np.testing.assert_allclose(base[name] + scale * B @ A, merged[name], atol=2e-6)
        assert np.abs(B @ A).max() > 1e-3
    assert record["kl_mean"] < 1e-6 and record["relative_error"] < 1e-5


def base_tensors(model, family, path):
    """The pretrained weights of the adapted layers, by an own formula of llama.cpp's order of rows."""
    found = {}
    leaves = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    leaves |= {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    for name, module in model.hf.named_modules():
        if name.rpartition(".")[2] in leaves and name.startswith("model.layers"):
            weight = module.pretrained_weight().numpy()
            leaf, block = name.rpartition(".")[2], name.split(".")[2]
            heads = {"q_proj": 4, "k_proj": 2}.get(leaf)
            if family == "llama" and heads:
                size = len(weight) // heads
                order = [
                    h * size + half * size // 2 + k
                    for h in range(heads)
                    for k in range(size // 2)
                    for half in (0, 1)
                ]
                weight = weight[order]
            found[f"blk.{block}.{leaves[leaf]}.weight"] = weight
    return found


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("phi3", {"merged": True}, "phi3 models are not written as GGUF here"),
        ("llama", {"dtype": "q8_0"}, "an adapter in q8_0 would lose what was trained"),
        ("llama", {"merged": True, "rank": 2}, "--merged leaves nothing out"),
    ],
)
def test_what_is_not_written_is_refused(run, tmp_path, family, options, says):
    with pytest.raises(UsageError, match=says):
        export(run(family)[0], "gguf", tmp_path / "out", Options(**options))
    assert list(tmp_path.iterdir()) == []
