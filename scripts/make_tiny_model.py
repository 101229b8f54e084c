"""Make tiny random models for tests: real architectures, two layers, their own tokenizer.

    python scripts/make_tiny_model.py FOLDER [FAMILY]

The same seed gives the same weights. The tokenizer is a byte-level BPE trained on the quickstart data, with a
ChatML template, `<|im_end|>` as the stop token and a pad token of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import AutoConfig

TEXT = Path(__file__).parents[1] / "recipes" / "data" / "quickstart" / "train.jsonl"
VOCABULARY = 512
# Embedding rows without a token, as published models have; a tokenizer class may add a token of its own.
SPARE = 8
PAD, START, STOP = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Of mixtures of experts.
FEW = {"num_experts_per_tok": 2}
EXPERTS = {"num_local_experts": 4, **FEW}
THIN_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, **FEW}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    **FEW,
}
GROUPS = {"n_group": 1, "topk_group": 1}
# Of attention over compressed keys and values.
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
# Of layers that carry a state along the row.
MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
DELTA = {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
DELTA |= {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
WINDOW = {"sliding_window": 8}
HALF = {"layer_types": ["sliding_attention", "full_attention"]}
STILL = {
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}  # as the others: training mode computes the same
N_NAMES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, **STILL}

# family -> (keys that turn biases on, None where the architecture fixes them; its other settings)
FAMILIES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "llama": ("attention_bias mlp_bias", {}),
    "mistral": (None, {"sliding_window": None}),
    "qwen2": (None, {}),
    "qwen3": ("attention_bias", {"head_dim": 16}),
    "gemma2": ("attention_bias", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4096}),
    "gemma3_text": ("attention_bias", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4096}),
    "phi3": (None, {}),
    "gpt2": (None, N_NAMES),
    "apertus": (None, {}),
    "arcee": (None, {}),
    "bamba": (None, {**MAMBA, "attn_layer_indices": [1]}),
    "bert": (None, {"is_decoder": False}),
    "biogpt": (None, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layerdrop": 0.0}),
    "bloom": (None, {"n_layer": 2, "n_head": 4}),
    "codegen": (None, {**N_NAMES, "n_ctx": 1024, "rotary_dim": 8}),
    "cohere": (None, {}),
    "cohere2": (None, WINDOW),
    "deepseek_v2": (None, {**LATENT, **ROUTED, **GROUPS, "num_key_value_heads": 4}),
    "deepseek_v3": (None, {**LATENT, **ROUTED, **GROUPS, "num_key_value_heads": 4}),
    "ernie4_5": (None, {"head_dim": 16}),
    "exaone4": (None, WINDOW),
    "falcon": (None, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_h1": (None, {**MAMBA, "mamba_d_ssm": 128}),
    "falcon_mamba": (None, {"state_size": 8, "time_step_rank": 4}),
    "gemma": (None, {"head_dim": 16}),
    "glm": (None, {"head_dim": 16}),
    "glm4": (None, {"head_dim": 16}),
    "glm4_moe": (None, {**ROUTED, **GROUPS, "head_dim": 16}),
    "gpt_bigcode": (None, N_NAMES),
    "gpt_neo": (
        None,
        {"num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": (None, {}),
    "gpt_oss": (None, {**EXPERTS, **WINDOW, **HALF, "head_dim": 16}),
    "gptj": (None, {**N_NAMES, "rotary_dim": 8}),
    "granite": (None, {"logits_scaling": 8.0}),
    "granitemoe": (None, {**EXPERTS, "logits_scaling": 8.0}),
    "helium": (None, {"head_dim": 16}),
    "granitemoehybrid": (
        None,
        {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    ),
    "hunyuan_v1_dense": (None, {"head_dim": 16}),
    "internlm3": (None, {}),
    "jamba": (
        None,
        {
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "num_experts": 4,
            **FEW,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": (None, {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": (
        None,
        {**THIN_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "llama4_text": (
        None,
        {
            "num_local_experts": 2,
            "intermediate_size_mlp": 128,
            "head_dim": 16,
            "attention_chunk_size": 8,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "mamba": (None, {"state_size": 8, "time_step_rank": 4}),
    "mamba2": (None, {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}),
    "minicpm3": (None, {**LATENT, "v_head_dim": 16, "dim_model_base": 16, "num_key_value_heads": 4}),
    "ministral": (None, {**WINDOW, "head_dim": 16}),
    "mixtral": (None, EXPERTS),
    "mpt": (None, {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 1024, "expansion_ratio": 2}),
    "nanochat": (None, {}),
    "nemotron": (None, {}),
    "olmo": (None, {}),
    "olmo2": (None, {}),
    "olmo3": (None, WINDOW),
    "olmoe": (None, {"num_experts": 4, **FEW}),
    "opt": (None, {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "phi": (None, {}),
    "phimoe": (None, EXPERTS),
    "qwen2_moe": (None, {**THIN_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": (None, {**THIN_EXPERTS, "head_dim": 16}),
    "qwen3_next": (
        None,
        {
            **THIN_EXPERTS,
            **DELTA,
            "shared_expert_intermediate_size": 32,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "recurrent_gemma": (
        None,
        {
            "lru_width": 64,
            "attention_window_size": 8,
            "block_types": ["recurrent", "attention"],
            "head_dim": 16,
        },
    ),
    "rwkv": (None, {"attention_hidden_size": 64, "context_length": 1024}),
    "seed_oss": (None, {"head_dim": 16}),
    "smollm3": (None, {}),
    "stablelm": (None, {}),
    "starcoder2": (None, {**WINDOW, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "xglm": (
        None,
        {
            "d_model": 64,
            "ffn_dim": 128,
            "num_layers": 2,
            "attention_heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
        },
    ),
}


def make(
    folder: str | Path,
    family: str = "llama",
    *,
    tied: bool = True,
    bias: bool = False,
    hidden: int = 64,
    seed: int = 0,
) -> Path:
    """Write a model and its tokenizer into `folder` and return it.

    Args:
        family: one of `FAMILIES`.
        tied: whether the head is the embedding.
        bias: biases in the linear layers, where the architecture has the choice (gpt2 and qwen2 always have).
        hidden: width, a multiple of 16.

    Raises:
        ValueError: `bias` for an architecture without that choice.
    """
    folder = Path(folder)
    tokenizer = make_tokenizer()
    config = make_config(family, tokenizer, tied=tied, bias=bias, hidden=hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _spread_biases(model)
    # Greedy, so that generation tests need no settings of their own.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_bpe(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """Byte-level BPE of so many tokens, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCABULARY` tokens; any text survives an encode and decode."""
    tokenizer = train_bpe(_texts(), VOCABULARY, [PAD, START, STOP])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=STOP,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_config(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    tied: bool = True,
    bias: bool = False,
    hidden: int = 64,
) -> Any:
    """The architecture's configuration at toy size."""
    if family not in FAMILIES:
        raise ValueError(f"family: {family!r} is none of {', '.join(FAMILIES)}")
    bias_keys, settings = FAMILIES[family]
    if bias and bias_keys is None:
        raise ValueError(f"bias: {family} has no choice of biases")
    return AutoConfig.for_model(
        family,
        **{**_shape(hidden), **settings},
        **dict.fromkeys((bias_keys or "").split() if bias else (), True),
        vocab_size=VOCABULARY + SPARE,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _shape(hidden: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }


def _spread_biases(model: torch.nn.Module) -> None:
    """Biases start at zero, where a lost or doubled one would go unseen."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)


def _texts() -> Iterator[str]:
    for line in TEXT.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield f"user\n{row['prompt']}\nassistant\n{row['completion']}\n"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(f"usage: make_tiny_model.py FOLDER [{' | '.join(FAMILIES)}]")
    print(make(*sys.argv[1:]))
